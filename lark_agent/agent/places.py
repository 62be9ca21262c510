"""What every address is to a job, and which ports of the worker: told to the datapath, kept true.

The site says which networks make its classes and which services jobs may use, the configuration
where the sandboxes are. What is the worker itself, only the worker's kernel knows, and it changes:
an interface comes up, an address moves here from a machine that failed. Until the datapath knows of
such an address (the kernel tells of it at once, see `lark_agent.agent.follow`) the firewall alone
keeps jobs from what listens there.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

from lark_agent.linux import local

if TYPE_CHECKING:
    from lark_agent.config import AgentSettings
    from lark_agent.datapath import Datapath
    from lark_agent.linux.local import Network
    from lark_agent.sandbox.addressing import Addressing


class Places:
    """Belongs to the kernel thread."""

    def __init__(self, datapath: Datapath, numbers: Addressing, settings: AgentSettings) -> None:
        """Tell the datapath; raises LarkError."""
        self._datapath = datapath
        self._numbers = numbers
        self.gateways: frozenset[Network] = frozenset(map(ip_network, numbers.gateways))
        """The worker's addresses on the sandboxes' links: known before they are there."""
        self._worker = self._look()
        self._jobs: frozenset[Network] = frozenset()
        self.take(settings)

    def take(self, settings: AgentSettings) -> None:
        """Put the classes and services of a configuration in force; raises LarkError."""
        self._tell(settings, self._worker)
        self._datapath.set_services(settings.service_ports)
        self.settings = settings

    def follow(self) -> tuple[frozenset[Network], frozenset[Network]]:
        """Take over the worker's addresses; returns those that came and those that went."""
        worker, before = self._look(), self._worker
        if worker != before:
            self._tell(self.settings, worker)
            self._worker = worker
        return worker - before, before - worker

    def say_where(self, jobs: frozenset[Network]) -> None:
        """Tell in which networks an address is a listed job's or nobody's; raises LarkError."""
        if jobs != self._jobs:
            before, self._jobs = self._jobs, jobs
            try:
                self._tell(self.settings, self._worker)
            except BaseException:
                self._jobs = before
                raise

    def _look(self) -> frozenset[Network]:
        return local.networks() | self.gateways

    def _tell(self, settings: AgentSettings, worker: frozenset[Network]) -> None:
        self._datapath.set_classes(
            settings.classes, peers=self._numbers.networks, worker=worker, remote=self._jobs
        )
