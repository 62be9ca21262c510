"""Sandboxes in a network namespace that the job made, for jobs that can enter no other.

Where a file capability has no effect (no_new_privs, containers) the wrapper makes a user namespace,
as any user may, and a network namespace with it. A sandbox that was ready moves there: its end of
the link, with the addresses, routes and settings that it had; and its name, so that whatever works
by name (draining, MTU, services, recovery, dismantling) finds the job's namespace. The host's end
of the link does not change.

The job's user may become root of that namespace: give itself other addresses, delete the link,
write its frames. So this is for kinds of which nothing rests on the inside: every program, queue
and rule is on the host's end, where the datapath holds the job to its plan whatever it sends. On
networks of the site the sandbox's own kernel keeps addresses up, and on some the datapath hangs
there.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from lark_agent.errors import PolicyRefusal
from lark_agent.linux import namespaces, netlink, sysctl
from lark_agent.linux.netlink import Netlink
from lark_agent.model import Connectivity

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = frozenset({Connectivity.NAT, Connectivity.ROUTED, Connectivity.NONE})
"""The connectivities of which nothing rests on the inside."""
_BORN_WITH = frozenset(
    {
        "lo",
        "tunl0",
        "gre0",
        "gretap0",
        "erspan0",
        "ip_vti0",
        "ip6_vti0",
        "sit0",
        "ip6tnl0",
        "ip6gre0",
    }
)
"""What a new namespace has: where tunnels' modules are loaded, one of each kind
(net.core.fb_tunnels_only_for_init_net)."""
_RTM_GETLINK, _IFINFO, _IFLA_IFNAME = 18, 16, 3  # include/uapi/linux/{rtnetlink,if_link}.h


def check_owner(namespace: int, uid: int) -> None:
    """Raise PolicyRefusal unless it is of a user namespace that this user made on the worker."""
    maker = namespaces.made_by(namespace)
    if maker != uid:
        raise PolicyRefusal(
            "the caller was to make a network namespace in a user namespace of its own, and is in "
            f"one of {'the worker' if maker is None else f'user {maker}'}; start it by lark-run"
        )


def prepare(namespace: int, inside: Callable[[], None]) -> None:
    """Run `inside` there, with what the worker allows its users. Raises KernelError."""
    # ping has no privilege here; a new namespace lets nobody ping without
    groups = sysctl.read("net/ipv4/ping_group_range")

    def settle() -> None:
        sysctl.write("net/ipv4/ping_group_range", groups)
        inside()

    namespaces.run_in(namespace, settle)


def check_empty(namespace: int) -> None:
    """Raise PolicyRefusal if somebody put an interface there, the link of a sandbox, say.

    How many there are is the caller's choice, so it is not asked: names differ, so that one of the
    first few is none that a new namespace has.
    """

    def names() -> list[str]:
        with Netlink(socket.NETLINK_ROUTE) as rtnetlink:
            first = rtnetlink.some(
                _RTM_GETLINK, bytes(_IFINFO), len(_BORN_WITH) + 1, "listing interfaces"
            )
        attributes = [dict(netlink.attributes(message[_IFINFO:])) for message in first]
        return [each[_IFLA_IFNAME].rstrip(b"\0").decode(errors="replace") for each in attributes]

    found = next(
        (name for name in namespaces.run_in(namespace, names) if name not in _BORN_WITH), ""
    )
    if found:
        raise PolicyRefusal(
            f"the network namespace that the caller made has an interface {found!r} already; start "
            "the command by lark-run, from outside of any"
        )


def is_jobs(name: str) -> bool:
    """Tell whether the sandbox of this name is in a namespace that its job made."""
    descriptor = os.open(namespaces.path(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        return namespaces.made_by(descriptor) is not None
    finally:
        os.close(descriptor)
