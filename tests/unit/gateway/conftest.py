"""The contract of the transcoder's tests, for the gateway's tests that need one."""

from tests.unit.transcoding.conftest import shop

__all__ = ["shop"]
