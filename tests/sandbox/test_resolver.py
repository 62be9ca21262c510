"""Which resolv.conf works inside a sandbox."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from lark_agent.sandbox.resolver import decide

GATEWAY = IPv4Address("100.98.0.1")
REAL = "search example.org\nnameserver 198.51.100.10\nnameserver 2001:db8::53\noptions ndots:2\n"
STUB = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.org\n"


def test_real_servers_are_used_as_they_are() -> None:
    """A worker without a stub gives its file unchanged, both families."""
    assert decide(REAL, "", GATEWAY).text == REAL


def test_systemds_stub_is_replaced_by_its_servers() -> None:
    """The stub answers on the worker's loopback only; its list of servers is used instead."""
    found = decide(STUB, REAL, GATEWAY)
    assert (found.text, found.stub, found.problem) == (REAL, None, "")


def test_systemds_stub_without_servers_is_reached_like_any_other() -> None:
    """If systemd-resolved itself knows only loopback servers, its list helps nobody."""
    assert decide(STUB, STUB, GATEWAY).stub == IPv4Address("127.0.0.53")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3"])
def test_another_stub_is_reached_through_the_gateway(address: str) -> None:
    """The sandbox asks its gateway; search domains and options stay."""
    found = decide(f"search a.b\nnameserver {address}\noptions rotate\n", "", GATEWAY)
    assert found.stub == IPv4Address(address)
    assert found.text.split() == ["search", "a.b", "options", "rotate", "nameserver", "100.98.0.1"]


def test_no_server_means_loopback() -> None:
    """resolv.conf(5): without a nameserver line the resolver asks 127.0.0.1."""
    assert decide("", "", GATEWAY).stub == IPv4Address("127.0.0.1")


def test_real_servers_stay_beside_a_stub() -> None:
    """They are the fallback inside the sandbox too."""
    found = decide("nameserver 127.0.0.1\nnameserver 198.51.100.10\n", "", GATEWAY)
    assert found.text == "nameserver 100.98.0.1\nnameserver 198.51.100.10\n"


def test_a_stub_on_ipv6_loopback_alone_is_said_to_fail() -> None:
    """There is no way to it; the admin is told what to change."""
    found = decide("nameserver ::1\n", "", GATEWAY)
    assert "::1" in found.problem
    assert found.stub is None
    assert decide("nameserver ::1\nnameserver 192.0.2.1\n", "", GATEWAY).problem == ""


def test_nonsense_is_not_a_server() -> None:
    """A line that names no address is passed over."""
    assert decide("nameserver dns.example\nnameserver fe80::1%eth0\n", "", GATEWAY).problem == ""
