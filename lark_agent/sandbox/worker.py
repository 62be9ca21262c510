"""The worker's side that all sandboxes share: firewall, forwarding, the resolver, its services.

Made before the first sandbox, followed while there are any: the worker's resolver may change, IPv6
may come later than the agent, and a reload may list other services.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lark_agent import crash
from lark_agent.linux import files, nftables, sysctl, uplink
from lark_agent.sandbox import firewall, resolver
from lark_agent.sandbox.openings import Openings

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from lark_agent.sandbox.addressing import Addressing
    from lark_agent.sandbox.services import Loopbacks, Services
    from lark_agent.sandbox.veth import Veths


class WorkerSide:
    """Belongs to the thread of `veths`."""

    def __init__(
        self, numbers: Addressing, veths: Veths, loopbacks: Loopbacks, services: Services,
        run_directory: Path, pool: Collection[str] = (),
    ) -> None:  # fmt: skip
        """`pool` are the networks of the pool's jobs."""
        self._numbers = numbers
        self._veths = veths
        self._loopbacks = loopbacks
        self._resolv_conf = run_directory / "resolv.conf"
        self._forwarding = run_directory / "forwarding"
        self._services = services
        self._pool = pool
        self.openings = Openings(numbers, self._write_firewall)
        """What the plans of jobs let in from outside."""
        self.resolver = resolver.read(numbers.gateway4)

    @property
    def uplink(self) -> uplink.Uplink:
        """The uplink as it is now."""
        return self._veths.uplink

    def prepare(self) -> None:
        """Write firewall, sysctls and resolv.conf."""
        self._write_resolv_conf()
        self._let_loopback()
        self._let_forward()

    def offer(self, services: Services) -> None:
        """Let sandboxes use these services of the worker from now on."""
        self._services = services
        self._loopbacks.offer(services.loopback)
        self._let_loopback()

    def follow(self) -> bool:
        """Take over the worker's resolver and uplink; returns whether the MTU had changed."""
        stub, had_ipv6 = self.resolver.stub, self._veths.uplink.has_ipv6
        self._write_resolv_conf()
        if self.resolver.stub != stub:
            self._let_loopback()
        changed = self._veths.follow_uplink()
        if self._veths.uplink.has_ipv6 and not had_ipv6:
            self._let_forward()
        return changed

    def _write_resolv_conf(self) -> None:
        """Write the sandboxes' resolv.conf, in place: running jobs see it by a bind mount."""
        self.resolver = resolver.read(self._numbers.gateway4)
        text = "# written by lark-agent for the job sandboxes\n" + self.resolver.text
        if not self._resolv_conf.exists() or self._resolv_conf.read_text(encoding="utf-8") != text:
            self._resolv_conf.write_text(text, encoding="utf-8")
            self._resolv_conf.chmod(0o644)

    def replaces_resolver(self) -> bool:
        """Tell whether the worker's own resolv.conf is of no use in a sandbox."""
        return resolver.replaces(self.resolver)

    def _let_loopback(self) -> None:
        self._write_firewall()
        self._veths.let_localnet(on=self.resolver.stub is not None or self._loopbacks.used)

    def _let_forward(self) -> None:
        delegated6 = self._numbers.routed.network6 is not None
        ipv6 = self._veths.uplink.has_ipv6 or delegated6
        opened = uplink.not_forwarding(ipv6=ipv6)
        # before it is done, so that it is taken back whenever this agent ends
        files.write_whole(self._forwarding, " ".join(sorted(self._opened() | opened)))
        uplink.let_forward(self._veths.uplink, opened)
        crash.here("worker.forwards")
        self._write_firewall()

    def _opened(self) -> set[str]:
        """Return the families that this worker forwards only for us; also after a restart."""
        if not self._forwarding.exists():
            return set()
        return set(self._forwarding.read_text(encoding="ascii").split())

    def _write_firewall(self) -> None:
        worker = firewall.Worker(
            self._services, self.resolver.stub, self._opened(),
            int(sysctl.read("net/netfilter/nf_conntrack_max") or 262_144), self._pool,
        )  # fmt: skip
        nftables.run(firewall.ruleset(self._numbers, worker, self.openings.elements))
        crash.here("worker.firewall")

    def restore_firewall(self) -> bool:
        """Write the firewall again if somebody removed it; returns whether that was so."""
        if firewall.stands():
            return False
        self._write_firewall()
        return True

    def withdraw(self) -> None:
        """Take back what `prepare` changed, for an agent without jobs."""
        nftables.run(firewall.removal())
        crash.here("worker.no-firewall")
        uplink.stop_forwarding(self._opened())
        self._forwarding.unlink(missing_ok=True)
