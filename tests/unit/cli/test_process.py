"""Ports that nobody else takes before they are used."""

import random
import socket
from pathlib import Path

import pytest

from atelier_cli.embedded import process
from atelier_cli.embedded.process import StartError, free_ports, is_free


def test_free_ports_are_different_free_and_none_that_an_outgoing_connection_may_take() -> None:
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert all(is_free(port) for port in ports)
    if first_outgoing > 12_000:
        assert max(ports) < first_outgoing


def test_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        there = taken.getsockname()[1]
        monkeypatch.setattr(process, "_FIRST_PORT", there)
        monkeypatch.setattr(process, "_first_outgoing_port", lambda: there + 1)
        with pytest.raises(StartError, match="no 1 free ports"):
            free_ports(1)


def test_two_processes_with_one_seed_choose_different_ports() -> None:
    random.seed(1)
    first = free_ports(10)
    random.seed(1)
    assert free_ports(10) != first
