"""What every table of a configuration file has, and the forms that several of them check."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING

import msgspec

from lark_agent.model import JOBS_CLASS, WORKER_CLASS
from lark_agent.quantities import NotAQuantity, rates

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
"""A host name, qualified or not (RFC 1123, 2.1), with the underscores that sites use anyway."""
ATTRIBUTE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
"""A name in a ClassAd."""
FOREVER = 36525.0
"""Days; bounds what is added to times."""
EVERYWHERE = "all"
"""The word for every class where a computed value names the classes a job may reach."""
NOTHING = "none"
"""The word for no queue and no quota in a computed value."""
ADMITTED_BY = {
    JOBS_CLASS: f"reach does not name '{JOBS_CLASS}': which other jobs a job reaches is its peers",
    WORKER_CLASS: f"reach does not name '{WORKER_CLASS}': what of the worker a job reaches is its "
    "services",
}
"""Classes that quotas and prices name and `reach` does not, and what admits them instead."""


def is_endpoint(text: str) -> bool:
    """Say whether a text is host:port or [IPv6 address]:port."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:/\s\[\]]+):(\d{1,5})", text)
    return found is not None and int(found[2]) <= 65535


def network_of(text: str) -> IPv4Network | IPv6Network | None:
    """Return the network that a text names, None if it names none."""
    try:
        return ip_network(text)
    except ValueError:
        return None


def overlap(text: str, others: Iterable[str]) -> bool:
    """Say whether a network shares addresses with one of some others."""
    one = network_of(text)
    return one is not None and any(
        other is not None and other.version == one.version and one.overlaps(other)
        for other in map(network_of, others)
    )


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the configuration file."""

    def findings(self) -> Iterator[tuple[str, str]]:
        """Yield (key, what is wrong and what to do) for each value that cannot be used."""
        yield from ()


def rate_findings(section: Section, *keys: str) -> Iterator[tuple[str, str]]:
    """Check keys that hold a rate or nothing."""
    for key in keys:
        try:
            rates(getattr(section, key) or 0)
        except NotAQuantity as error:
            yield key, f"{error}"
