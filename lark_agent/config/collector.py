"""Everything in /etc/lark/collector.toml."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lark_agent.config.section import Section, is_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

COLLECTOR_FILE = Path("/etc/lark/collector.toml")


class CollectorSettings(Section, frozen=True):
    """Everything in /etc/lark/collector.toml."""

    listen: str = "127.0.0.1:9620"
    """host:port where workers report."""
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
        if not self.socket.startswith("/"):
            yield "socket", f"'{self.socket}' is not an absolute path"
        if "://" not in self.store:
            yield (
                "store",
                f"'{self.store}' is not a URL such as {CollectorSettings().store}",
            )
