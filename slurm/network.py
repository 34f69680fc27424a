"""A node's own address, and ports that are free on it."""

import socket

from fewscan.storage.errors import ClusterError


def own_address(told: str | None = None) -> str:
    """The address under which other nodes reach this one; `told` is the scheduler's word for it.

    Raises `ClusterError`.
    """
    for address in (told, _resolved(), address_towards("10.255.255.255")):
        if address and not address.startswith("127."):
            return address
    raise ClusterError(
        f"node {socket.gethostname()} knows no address of its own but 127.0.0.1",
        expected="an address that other nodes can reach",
        remedy="ask the administrators to give the node's name an address in DNS or /etc/hosts",
    )


def address_towards(other: str) -> str | None:
    """This node's address on the interface that leads to `other`; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((other, 9))
            return str(probe.getsockname()[0])
        except OSError:
            return None


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on just now. Another job may be quicker: try again."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def is_reachable(address: str) -> bool:
    """Whether somebody listens at `ip:port`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return True
    except OSError:
        return False


def _resolved() -> str | None:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return None
