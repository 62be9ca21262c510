"""The words of one site: what may stand in a plan, and how a value is read into it.

Rules and callouts give values at run time, so each is checked when it arrives: a plan never holds
a class that the site does not have or a connectivity that this worker does not offer. Words are
read in any case, and LARK's "null" is none; names of classes are the site's, to the letter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import classad2

from lark_agent.config import EVERYWHERE
from lark_agent.model import DEFAULT_CLASS, Connectivity, NetworkPlan, Peers
from lark_agent.policy.expressions import described

if TYPE_CHECKING:
    from lark_agent.config import AgentSettings, Profile

SETTINGS = ("connectivity", "reach", "peers")
"""The values of a plan that rules and callouts may give."""
_LARK = {"null": Connectivity.NONE.value}
_WIDER = {
    Peers.NONE: set(Peers),
    Peers.OWNER: {Peers.OWNER, Peers.ALL},
    Peers.GROUP: {Peers.GROUP, Peers.ALL},
    Peers.ALL: {Peers.ALL},
}


class UnusableValue(ValueError):  # noqa: N818  says what the value is
    """A value cannot stand in a plan of this site; says what can."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What plans of one site are made of."""

    profiles: dict[str, Profile]
    classes: frozenset[str]
    connectivities: frozenset[Connectivity]

    @classmethod
    def of(cls, settings: AgentSettings) -> Vocabulary:
        """Collect the words of a configuration."""
        classes = frozenset(settings.classes) | {DEFAULT_CLASS}
        return cls(settings.all_profiles, classes, settings.offered)

    def plan(self, profile: str) -> NetworkPlan:
        """Return what a profile alone allows; raises UnusableValue."""
        if profile not in self.profiles:
            known = ", ".join(sorted(self.profiles))
            raise UnusableValue(f"this site has no network profile '{profile}'; it has {known}")
        bundle = self.profiles[profile]
        reach = None if bundle.reach is None else frozenset(bundle.reach)
        return NetworkPlan(profile, bundle.connectivity, reach, bundle.peers)

    def put(self, plan: NetworkPlan, setting: str, value: object) -> NetworkPlan:
        """Return the plan with one of `SETTINGS` replaced; raises UnusableValue."""
        if isinstance(value, classad2.Value):
            raise UnusableValue(
                "guard the rule by its condition, or give the expression a default with ?:"
            )
        if setting == "connectivity":
            return replace(plan, connectivity=self._connectivity(value))
        if setting == "peers":
            return replace(plan, peers=Peers(_word(value, [peers.value for peers in Peers])))
        return replace(plan, reach=self._reach(value))

    def _connectivity(self, value: object) -> Connectivity:
        return Connectivity(_word(value, sorted(kind.value for kind in self.connectivities)))

    def _reach(self, value: object) -> frozenset[str] | None:
        names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
        if names == [EVERYWHERE]:
            return None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UnusableValue('it must be a list of classes, or one string "CLASS, CLASS"')
        wanted = frozenset(name for name in names if name)
        if unknown := sorted(wanted - self.classes):
            known = ", ".join(sorted(self.classes))
            raise UnusableValue(
                f"no class '{unknown[0]}' is defined under [classes]; "
                f'known: {known}, or "{EVERYWHERE}" alone'
            )
        return wanted


def no_more_than(less: NetworkPlan, more: NetworkPlan) -> bool:
    """Tell whether a plan allows nothing that the other does not."""
    if less.connectivity == Connectivity.NONE:
        return True
    reach = more.reach is None or (less.reach is not None and less.reach <= more.reach)
    return less.connectivity == more.connectivity and reach and more.peers in _WIDER[less.peers]


def written(plan: NetworkPlan, setting: str) -> str:
    """Write one setting of a plan for people."""
    if setting == "reach":
        return EVERYWHERE if plan.reach is None else ", ".join(sorted(plan.reach)) or "nothing"
    return str(getattr(plan, setting))


def _word(value: object, known: list[str]) -> str:
    word = value.lower() if isinstance(value, str) else ""
    word = _LARK.get(word, word)
    if word not in known:
        raise UnusableValue(f"{described(value)} is not one of {', '.join(known)}")
    return word
