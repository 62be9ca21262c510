"""Everything in /etc/lark/collector.toml."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lark_agent.config.section import Section, is_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_DAYS = 825
"""More than two years of a stolen key would be carelessness."""
COLLECTOR_FILE = Path("/etc/lark/collector.toml")


class CollectorSettings(Section, frozen=True):
    """Everything in /etc/lark/collector.toml."""

    listen: str = "127.0.0.1:9620"
    """host:port where workers report."""
    enroll: str = "127.0.0.1:9621"
    """host:port where new workers enrol; empty: none can, for now."""
    insecure: bool = False
    """Take reports without TLS from whoever reaches the address, who may claim any name; agents
    have to say the same."""
    authority: str = "/var/lib/lark-collector/authority"
    """Directory of the authority's keys, open tokens and enrolled workers."""
    certificate_days: float = 30
    """How long a worker's certificate is good; it is renewed when a third is left."""
    socket: str = "/run/lark-collector/query.sock"
    """Unix socket where people ask."""
    store: str = "sqlite:////var/lib/lark-collector/usage.sqlite"
    """SQLAlchemy URL of the durable store."""
    admin_group: str = "lark-admin"
    """Members see every job; others see their own."""
    observers: tuple[str, ...] = ("condor",)
    """Accounts that see every job too: HTCondor's daemons publish usage; leave out one that jobs
    run as."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Check forms."""
        if not is_endpoint(self.listen):
            yield "listen", f"'{self.listen}' is not host:port or [address]:port"
        if self.enroll and not is_endpoint(self.enroll):
            yield "enroll", f"'{self.enroll}' is not host:port or [address]:port"
        if not self.authority.startswith("/"):
            yield "authority", f"'{self.authority}' is not an absolute path"
        if not 0 < self.certificate_days <= LONGEST_DAYS:
            yield (
                "certificate_days",
                f"{self.certificate_days} is not more than 0 and at most {LONGEST_DAYS}",
            )
        if not self.socket.startswith("/"):
            yield "socket", f"'{self.socket}' is not an absolute path"
        if "://" not in self.store:
            yield (
                "store",
                f"'{self.store}' is not a URL such as {CollectorSettings().store}",
            )
