"""Named network namespaces: made, entered and removed without the caller moving an inch."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from lark_agent.errors import KernelError
from lark_agent.linux import namespaces
from lark_agent.linux.links import Links

pytestmark = pytest.mark.root


def mounted(name: str) -> bool:
    return f"/run/netns/{name} " in Path("/proc/thread-self/mountinfo").read_text()


def interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def test_a_namespace_is_made_entered_and_removed(fresh_host: Path) -> None:
    """Work inside sees the new namespace only; the caller stays where it is."""
    with Links() as links:
        links.netlink.link("add", kind="veth", ifname="outside0", peer="outside1")
    before = namespaces.identity("/proc/thread-self/ns/net")
    assert namespaces.create("lark7", interfaces) == ["lo"]
    assert namespaces.run_inside("lark7", interfaces) == ["lo"]
    assert "outside0" in interfaces()
    assert namespaces.identity("/proc/thread-self/ns/net") == before
    assert namespaces.identity(namespaces.path("lark7")) != before
    assert namespaces.names("lark") == ["lark7"]
    namespaces.delete("lark7")
    namespaces.delete("lark7")
    assert namespaces.names("lark") == []
    assert not mounted("lark7")


def test_a_failed_build_leaves_nothing(fresh_host: Path) -> None:
    """An error inside reaches the caller, and neither name, mount nor thread stays."""

    def fail() -> None:
        raise KernelError("wiring", "it did not work")

    threads = threading.active_count()
    with pytest.raises(KernelError, match="wiring: it did not work"):
        namespaces.create("lark8", fail)
    assert namespaces.names("lark") == []
    assert not mounted("lark8")
    assert threading.active_count() == threads


def test_errors_inside_reach_the_caller(fresh_host: Path) -> None:
    """An error in an existing namespace leaves it as it is; one that is gone is an OSError."""
    namespaces.create("lark9", interfaces)
    with pytest.raises(ZeroDivisionError):
        namespaces.run_inside("lark9", lambda: 1 // 0)
    assert namespaces.names("lark") == ["lark9"]
    with pytest.raises(FileNotFoundError):
        namespaces.run_inside("lark10", interfaces)


def test_no_descriptor_stays_open(fresh_host: Path) -> None:
    """Making, entering and removing costs no descriptor."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(5):
        namespaces.create(f"lark{number}", interfaces)
        namespaces.run_inside(f"lark{number}", interfaces)
        namespaces.delete(f"lark{number}")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
