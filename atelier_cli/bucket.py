"""The bucket on a store that is not the mesh's own; the embedded store makes its own bucket."""

import sys
from typing import Final

from atelier_cli.environment import given

DEFAULT_BUCKET: Final = "atelier"
_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
_SECONDS: Final = 5


def make_bucket() -> str | None:
    """Create the bucket of the store that the environment names, where it is missing and the keys allow it.

    Returns:
        A sentence for the user: what was done, or why the mesh will have no bucket. None where nothing is to be told.

    Raises:
        CliError: A file that holds a setting cannot be read.
    """
    return _make_bucket()[1]


def main() -> int:
    """Create the bucket: `python -m atelier_cli.bucket`, where no `atelier up` does it.

    Returns:
        The exit status: 0 where the bucket is there.
    """
    there, told = _make_bucket()
    if told is not None:
        sys.stderr.write(f"{told}\n")
    return 0 if there else 1


def _make_bucket() -> tuple[bool, str | None]:
    endpoint = given("ATELIER_S3_ENDPOINT")
    if endpoint is None:
        return True, None
    import urllib3  # noqa: PLC0415 -- a mesh with a store of its own need not load it
    from minio.error import MinioException, S3Error  # noqa: PLC0415 -- as above

    name = given("ATELIER_S3_BUCKET") or DEFAULT_BUCKET
    try:
        created = _create(endpoint, name)
    except S3Error as error:
        return False, (
            f"The bucket {name} at {endpoint} could not be found or created with these keys ({error.code}): "
            "create it, or name another by ATELIER_S3_BUCKET."
        )
    except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
        return False, (
            f"The object store at {endpoint} does not answer ({type(error).__name__}); the bucket {name} must exist."
        )
    except ValueError as error:
        return False, f"The object store at {endpoint} cannot be asked for the bucket {name}: {error}."
    return True, f"Created the bucket {name} at {endpoint}." if created else None


def _create(endpoint: str, name: str) -> bool:
    """Return whether the bucket was missing and is there now."""
    import urllib3  # noqa: PLC0415 -- as above
    from minio import Minio  # noqa: PLC0415 -- as above
    from minio.error import S3Error  # noqa: PLC0415 -- as above

    client = Minio(
        endpoint,
        access_key=given("ATELIER_S3_ACCESS_KEY"),
        secret_key=given("ATELIER_S3_SECRET_KEY"),
        secure=(given("ATELIER_S3_SECURE") or "").lower() in _TRUE,
        region=given("ATELIER_S3_REGION") or "us-east-1",
        http_client=urllib3.PoolManager(timeout=urllib3.Timeout(_SECONDS), retries=urllib3.Retry(1)),
    )
    if client.bucket_exists(name):
        return False
    try:
        client.make_bucket(name)
    except S3Error as error:
        # Another process created it meanwhile.
        if error.code not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
            raise
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
