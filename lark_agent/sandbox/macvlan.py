"""Connectivity `macvlan`: the sandbox has a MAC address of its own on the worker's interface.

No bridge is needed: the interface lives in the sandbox and takes frames straight from its parent.
So there is no host end, and the datapath hangs on the sandbox's own eth0, at its egress for what
the job sends and at its ingress for what it receives. The job has no rights there: the namespace
belongs to the worker's own user namespace.

As with every macvlan, sandboxes cannot reach the worker itself by the parent, nor it them;
sandboxes of one parent reach each other without leaving the worker, as far as the datapath lets
them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lark_agent.errors import PrerequisiteError
from lark_agent.linux import namespaces
from lark_agent.linux.links import Links
from lark_agent.sandbox.addressing import INSIDE
from lark_agent.sandbox.layer2 import delete_inside, inside_index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lark_agent.errors import LarkError
    from lark_agent.sandbox.connectivity import Sandbox


class MacvlanPort:
    """Interfaces on one parent."""

    inside = True

    def __init__(self, parent: str) -> None:
        self._parent = parent

    def check(self) -> None:
        """Check that the parent is there; raises PrerequisiteError."""
        with Links() as links:
            parent_index(links, self._parent)

    def plug(self, sandbox: Sandbox) -> int:
        """Make the interface, in the sandbox at once."""
        index = inside_index(sandbox)
        namespace = os.open(namespaces.path(sandbox.name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            with Links() as links:
                parent = parent_index(links, self._parent)
                links.add_macvlan(INSIDE, sandbox.mac, parent, namespace, links.mtu(parent), index)
        finally:
            os.close(namespace)
        return index

    def switch_on(self, sandbox: Sandbox) -> None:
        """Nothing of it is on the worker's side."""

    def unplug(self, sandboxes: Sequence[Sandbox]) -> list[LarkError]:
        """Delete the interfaces: in a namespace that a stray process holds they would live on."""
        return delete_inside(sandboxes)


def parent_index(links: Links, parent: str) -> int:
    """Return the index of an interface to build on; raises PrerequisiteError if it is not there."""
    index = links.index(parent)
    if not index:
        raise PrerequisiteError(
            f"there is no interface '{parent}' here; name one that `ip -br link` shows as "
            "`parent` under [networks]"
        )
    return index
