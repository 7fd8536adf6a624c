"""The embedded servers start, refuse wrong credentials, and die with their parent."""

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nats
import psycopg
import pytest
from minio import Minio
from minio.error import S3Error

from atelier_cli.embedded import postgres
from atelier_cli.embedded.postgres import PostgresServer
from atelier_cli.embedded.process import RunningServer, free_ports
from tests.conftest import NatsControl, S3Store


def test_postgres_takes_the_password_and_no_other(postgres_dsn: str) -> None:
    with psycopg.connect(postgres_dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    wrong = postgres_dsn.replace("atelier:", "atelier:wrong", 1)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)


def test_each_test_may_have_a_database_of_its_own(postgres_dsn: str, fresh_postgres_dsn: str) -> None:
    assert postgres_dsn != fresh_postgres_dsn


def test_s3_takes_its_keys_and_no_others(s3: S3Store) -> None:
    bucket = s3.bucket()
    good = Minio(s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, secure=False, region="us-east-1")
    assert good.bucket_exists(bucket)
    bad = Minio(s3.endpoint, access_key=s3.access_key, secret_key="wrong-secret", secure=False, region="us-east-1")
    with pytest.raises(S3Error):
        list(bad.list_objects(bucket))
    anonymous = Minio(s3.endpoint, secure=False, region="us-east-1")
    with pytest.raises(S3Error):
        list(anonymous.list_objects(bucket))


def test_nats_refuses_a_client_without_password(nats_url: str) -> None:
    host, _, port = nats_url.rpartition("@")[2].partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        answers = client.makefile("rb")
        assert answers.readline().startswith(b"INFO ")
        client.sendall(b'CONNECT {"verbose":true}\r\nPING\r\n')
        assert b"Authorization Violation" in answers.readline()


async def test_nats_can_lose_its_disk_and_come_back(nats_server: NatsControl) -> None:
    client = await nats.connect(nats_server.url, connect_timeout=30)
    await client.jetstream(timeout=60).add_stream(name="S", subjects=["s.>"])
    await client.close()
    nats_server.kill()
    nats_server.wipe()
    nats_server.start()
    client = await nats.connect(nats_server.url, connect_timeout=30)
    assert await client.jetstream(timeout=60).streams_info() == []
    await client.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops to another user")
def test_postgres_runs_below_a_private_folder_and_from_an_unreadable_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers_folder: Path
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(postgres, "_open_to_all", lambda file: False)
    monkeypatch.setattr(postgres, "_SYSTEM_FOLDER", servers_folder / "system")
    server = PostgresServer(tmp_path / "postgres", free_ports(1)[0], "password", tmp_path / "log", durable=False)
    running = RunningServer(server)
    running.start()
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute("SELECT current_setting('data_directory')").fetchone()
    running.stop()
    assert row is not None
    assert row[0].startswith(str(servers_folder / "system"))


def test_servers_die_with_their_parent(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import os, pathlib, signal
        from atelier_cli.embedded.nats import NatsServer
        from atelier_cli.embedded.process import RunningServer, free_ports
        folder = pathlib.Path({str(tmp_path)!r})
        running = RunningServer(NatsServer(folder / "nats", free_ports(1)[0], "password", folder / "nats.log"))
        running.start()
        print(running.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/exe").exists():  # a zombie has none
        assert time.monotonic() < deadline, "NATS outlived its parent"
        time.sleep(0.05)
