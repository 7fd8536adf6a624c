"""The tasks service as production composes it, and a worker of calls on it, both in the test's process."""

from tests.integration.tasks.conftest import bucket, start_mesh

__all__ = ["bucket", "start_mesh"]
