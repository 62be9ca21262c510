"""Connectivity `none`: a namespace with a loopback and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent.linux import namespaces
from lark_agent.linux.links import Links
from lark_agent.model import Connectivity
from lark_agent.sandbox import addressing, own
from lark_agent.sandbox.connectivity import Sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lark_agent.errors import LarkError


class NoneDriver:
    """Builds sandboxes without a link."""

    def check(self) -> None:
        """Nothing is needed but namespaces, which the first sandbox shows."""

    def set_up(self, slot: int) -> Sandbox:
        """Make the namespace and bring its loopback up."""
        namespaces.create(addressing.name(slot), _loopback_up)
        return Sandbox(slot, Connectivity.NONE)

    def hand_over(self, sandbox: Sandbox, namespace: int) -> None:
        """Give the namespace the sandbox's name."""
        own.prepare(namespace, _loopback_up)
        namespaces.give_name(sandbox.name, namespace)

    def renew(self, sandbox: Sandbox) -> None:
        """Nothing of it is the agent's but the namespace."""

    def fit(self, sandbox: Sandbox) -> bool:  # noqa: ARG002  of the protocol
        """Nothing wears off."""
        return True

    def tear_down(self, sandboxes: Sequence[Sandbox]) -> list[LarkError]:
        """Remove the names; the namespaces end with their last processes."""
        for sandbox in sandboxes:
            namespaces.delete(sandbox.name)
        return []


def _loopback_up() -> None:
    with Links() as links:
        links.up(links.index("lo"))
