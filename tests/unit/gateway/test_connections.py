"""How many connections there may be, and which make room."""

import pytest

from services.gateway.connections import ConnectionGate, most_connections


class Peer:
    """A connection that only notes that it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def make_room(self) -> None:
        self.closed = True


def admitted(gate: ConnectionGate, host: str, count: int) -> list[Peer]:
    peers = [Peer() for _ in range(count)]
    assert all(gate.admit(peer, host) for peer in peers)
    return peers


def test_the_oldest_that_never_spoke_makes_room_first() -> None:
    gate = ConnectionGate(3, 0)
    spoke, older, younger = admitted(gate, "10.0.0.1", 3)
    gate.busy(spoke)
    gate.rest(spoke)
    for closed in ((older,), (older, younger)):
        [new] = admitted(gate, "10.0.0.2", 1)
        gate.busy(new)
        assert [peer for peer in (spoke, older, younger) if peer.closed] == list(closed)
    admitted(gate, "10.0.0.2", 1)
    assert spoke.closed
    assert gate.count == 3


def test_a_connection_at_work_is_never_closed_for_another() -> None:
    gate = ConnectionGate(2, 0)
    working = admitted(gate, "10.0.0.1", 2)
    for peer in working:
        gate.busy(peer)
    assert not gate.admit(Peer(), "10.0.0.2")
    gate.rest(working[1])
    assert gate.admit(Peer(), "10.0.0.2")
    assert [peer.closed for peer in working] == [False, True]


def test_an_address_that_is_full_takes_nothing_from_others() -> None:
    gate = ConnectionGate(100, 2)
    others = admitted(gate, "10.0.0.1", 2)
    greedy = admitted(gate, "10.0.0.2", 5)
    assert [peer.closed for peer in greedy] == [True, True, True, False, False]
    for peer in greedy[3:]:
        gate.busy(peer)
    assert not gate.admit(Peer(), "10.0.0.2")
    assert not any(peer.closed for peer in others)
    gate.gone(greedy[4])
    assert gate.admit(Peer(), "10.0.0.2")


def test_whoever_holds_most_at_rest_makes_room_when_all_is_full() -> None:
    gate = ConnectionGate(6, 0)
    few, many = admitted(gate, "10.0.0.1", 2), admitted(gate, "10.0.0.2", 4)
    admitted(gate, "10.0.0.3", 1)
    assert many[0].closed
    assert not any(peer.closed for peer in few)


def test_a_network_of_ipv6_counts_as_one_address() -> None:
    gate = ConnectionGate(100, 1)
    [first] = admitted(gate, "2001:db8:1:2::1", 1)
    admitted(gate, "2001:db8:1:3::1", 1)
    assert not first.closed
    admitted(gate, "2001:db8:1:2::ffff", 1)
    assert first.closed
    admitted(gate, "fe80::1%eth0", 1)
    admitted(gate, "", 1)


def test_what_is_gone_is_no_longer_counted_however_often_it_goes() -> None:
    gate = ConnectionGate(2, 1)
    [peer] = admitted(gate, "10.0.0.1", 1)
    for _ in range(2):
        gate.gone(peer)
    gate.busy(peer)
    gate.rest(peer)
    assert gate.count == 0
    admitted(gate, "10.0.0.1", 1)


def test_only_so_many_that_were_turned_away_linger() -> None:
    gate = ConnectionGate(1, 0)
    [inside] = admitted(gate, "10.0.0.1", 1)
    assert gate.may_linger(inside)
    refused = [Peer() for _ in range(1000)]
    lingering = [peer for peer in refused if gate.may_linger(peer)]
    assert 0 < len(lingering) < 1000
    gate.gone(lingering[0])
    assert gate.may_linger(refused[-1])


@pytest.mark.parametrize(
    ("wanted", "descriptors", "bound"), [(8192, 65_536, 8192), (8192, 1024, 416), (10, 1024, 10), (10, 100, 1)]
)
def test_connections_fit_the_descriptors(wanted: int, descriptors: int, bound: int) -> None:
    assert most_connections(wanted, descriptors) == bound
