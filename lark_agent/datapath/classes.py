"""Destination classes: from the site's names and networks to the numbers in the kernel.

The kernel counts by class number, 0 to 15, and finds the number of an address in two tries where
the longest prefix wins. People speak of names. The numbers must not wander while there are jobs:
bytes counted under a number stay there, and a plan allows classes by number. Hence the rules of
`assign`, applied each time the site changes its classes:

* `other` is 0, and so is every address that no prefix covers;
* `jobs`, the other jobs, has the highest number that was free when it was needed, and while there
  is none (left so by a release without it) no job has peers; then `worker`, the worker itself, the
  next; while there is none, what is exchanged with it counts as `other`, under the same rule;
* a name that stays keeps its number; a new name takes a free one;
* a name that goes leaves its number retired, with the name still on it, for as long as a counter
  or a plan uses it; after that the number is free.

Besides the site's networks the tries hold the sandboxes' own ranges, in `jobs` and with the address
where they begin, by which the programs find the other job's plan; the ranges of jobs that only a
list tells (other workers', and networks of layer 2); and, longer, so they win, the worker's own
addresses: the gateways and those of its interfaces. A site network inside the sandboxes' ranges
would open a way from job to job: refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING

from lark_agent.datapath.layout import (
    ALL_CLASSES,
    FIRST_SANDBOX,
    NOBODY,
    REMOTE,
    WORKER,
    Destination,
)
from lark_agent.errors import ConfigurationError, PrerequisiteError
from lark_agent.model import BUILT_IN_CLASSES, DEFAULT_CLASS, JOBS_CLASS, MAX_CLASSES, WORKER_CLASS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from ipaddress import IPv4Address, IPv6Address

Network = IPv4Network | IPv6Network
_COMPUTED = (JOBS_CLASS, WORKER_CLASS)


@dataclass(frozen=True, slots=True)
class ClassTable:
    """Names by number ("" is free), and what every network is."""

    names: tuple[str, ...]
    prefixes: Mapping[Network, Destination]
    current: frozenset[str]
    """The names that the site uses now; others in `names` are retired."""

    def mask(self, reach: Collection[str] | None) -> int:
        """Return the class mask of a plan; None reaches everything.

        Raises ConfigurationError for a name that is not a class of the site.
        """
        if reach is None:
            return ALL_CLASSES
        if unknown := sorted(set(reach) - self.current):
            raise ConfigurationError(
                f"no class '{unknown[0]}'; known: {', '.join(sorted(self.current))}"
            )
        return sum(1 << self.names.index(name) for name in set(reach))

    def counted(self, names: Collection[str] | None) -> int:
        """Return the mask of classes by which packets are counted; None counts them all.

        Other jobs and the worker are among them, which `mask` leaves to peers and services. Raises
        ConfigurationError as `mask` does, and for a computed class that has no number yet.
        """
        if names is None:
            return ALL_CLASSES
        computed = set(names).intersection(_COMPUTED)
        if missing := sorted(computed.difference(self.names)):
            raise ConfigurationError(
                f"class '{missing[0]}' is not counted yet: jobs of an earlier release use all of "
                f"the {MAX_CLASSES} numbers for classes; wait until they have ended, and restart "
                "the agent"
            )
        computed_mask = sum(1 << self.names.index(name) for name in computed)
        return computed_mask | self.mask(set(names) - computed)


def assign(
    before: Sequence[str], in_use: Collection[int], wanted: Iterable[str]
) -> tuple[str, ...]:
    """Give numbers to names as the module's rules say; pure.

    Raises PrerequisiteError if there are too many names, retired ones in use included.
    """
    wanted = [name for name in wanted if name not in BUILT_IN_CLASSES]
    names = [DEFAULT_CLASS] + [""] * (MAX_CLASSES - 1)
    for number, name in enumerate(before):
        if number and name and (name in {*wanted, *_COMPUTED} or number in in_use):
            names[number] = name
    for name in wanted:
        if name in names:
            continue
        if "" not in names:
            retired = sorted(set(names) - {*wanted, *BUILT_IN_CLASSES})
            raise PrerequisiteError(
                f"no number is free for class '{name}': jobs still use the removed classes "
                f"{', '.join(retired)}; add it after they have ended"
            )
        names[names.index("")] = name
    for name in _COMPUTED:
        if name not in names and "" in names:
            names[max(number for number, free in enumerate(names) if not free)] = name
    return tuple(names)


def build_table(
    names: Sequence[str],
    classes: Mapping[str, Iterable[str]],
    peers: Iterable[Network] = (),
    worker: Iterable[IPv4Address | IPv6Address | Network] = (),
    remote: Iterable[Network] = (),
) -> ClassTable:
    """Say what every network is.

    Raises ConfigurationError for a site network inside the sandboxes' own ranges `peers`.
    """
    peers = tuple(peers)
    prefixes: dict[Network, Destination] = {}
    for name, texts in classes.items():
        for network in map(ip_network, texts):
            for peer in peers:
                if network.version == peer.version and network.subnet_of(peer):  # type: ignore[arg-type]  # the versions are equal
                    raise ConfigurationError(
                        f"classes.{name}: {network} lies in {peer}, where the sandboxes are; "
                        "remove it, or move the sandboxes ([addresses])"
                    )
            prefixes[network] = Destination(names.index(name))
    for network in remote:
        jobs = names.index(JOBS_CLASS) if JOBS_CLASS in names else 0
        prefixes[network] = Destination(jobs, REMOTE if jobs else NOBODY)
    for peer in peers:
        prefixes[peer] = Destination(0, NOBODY)
        if JOBS_CLASS in names:
            first = int(peer[FIRST_SANDBOX]) & 0xFFFFFFFF
            prefixes[peer] = Destination(names.index(JOBS_CLASS), first)
    own = names.index(WORKER_CLASS) if WORKER_CLASS in names else 0
    prefixes |= {ip_network(address): Destination(own, WORKER) for address in worker}
    return ClassTable(tuple(names), prefixes, frozenset({DEFAULT_CLASS, *classes}))


def pack_prefix(network: Network) -> bytes:
    """Return the key of a network in the trie of its family."""
    return struct.pack("=I", network.prefixlen) + network.network_address.packed
