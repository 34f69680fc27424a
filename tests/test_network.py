"""A node's address and its free ports."""

import pytest

from fewscan.slurm import network
from fewscan.slurm.network import address_towards, free_ports, is_reachable, own_address
from fewscan.storage.errors import ClusterError


def test_ports_differ_and_loopback_leads_to_loopback() -> None:
    assert len(set(free_ports(8))) == 8
    assert address_towards("127.0.0.1") == "127.0.0.1"


def test_nobody_listens_on_a_free_port() -> None:
    assert not is_reachable(f"127.0.0.1:{free_ports(1)[0]}")


def test_the_schedulers_word_comes_first_unless_it_is_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert own_address("10.1.2.3") == "10.1.2.3"
    monkeypatch.setattr(network, "_resolved", lambda: "10.1.2.4")
    assert own_address("127.0.0.1") == "10.1.2.4"
    monkeypatch.setattr(network, "_resolved", lambda: None)
    monkeypatch.setattr(network, "address_towards", lambda other: None)
    with pytest.raises(ClusterError, match="no address of its own"):
        own_address()
