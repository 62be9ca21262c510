"""The language spoken with the site's callout: both ads in, a few overrides out.

As in LARK, the program reads the job ad, a line of six dashes, and the machine ad, one
``Name = value`` a line. It sees what rules see: literal attributes, with the agent's facts in place
of what the ad says of owner, group and identity. Its answer is in the same form: Profile and any of
the settings of a plan, with literal values. No lines mean no objection.

LARK's programs answer with a new machine ad. That is understood too: what is as it was told says
nothing, VLAN names the network, NetworkType the connectivity, IPProtocol the address family, and
AddressType is what the network's addresses must then be (`addresses`), because here addresses are
a property of the network. Interfaces and bandwidth belong to the configuration alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lark_agent.config import AddressMode
from lark_agent.errors import InvalidRequest
from lark_agent.policy import ads
from lark_agent.policy.vocabulary import SETTINGS, family_of

if TYPE_CHECKING:
    from lark_agent.model import NetworkPlan
    from lark_agent.policy.ads import Ad, Value
    from lark_agent.policy.vocabulary import Vocabulary

SEPARATOR = "------"
MAX_BYTES = 65_536
"""Of what the program is told, and of what it may answer."""


_OF_MACHINES = {"vlan": "network", "networktype": "connectivity", "ipprotocol": "ip"}
"""LARK's attributes of a machine → the setting that each decides here."""
_ADDRESSES = "addresstype"
_CONFIGURED = {
    "bridgeinterface": "[networks.NAME] bridge",
    "externalinterface": "[uplink] interface or [networks.NAME] parent",
    "internalinterface": "the slot",
    "availbandwidth": "[uplink] rate",
    "networkaccounting": "nobody: it is always on",
}
"""Those that a callout cannot change, and who decides them."""


class UnreadableAnswer(ValueError):  # noqa: N818  says what the answer is
    """The program said something that is no answer."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the callout overrules: "" and nothing where it has no objection."""

    profile: str = ""
    """Replaces everything that the rules decided."""
    values: dict[str, Value] = field(default_factory=dict)
    """One of `SETTINGS` → value; each replaces that value alone."""
    addresses: str = ""
    """What the addresses that come of it must be: static, dhcp; "": anything."""

    @classmethod
    def parse(cls, data: bytes, machine: Ad | None = None) -> Overrides:
        """Read the answer to a question about `machine`; raises UnreadableAnswer."""
        if len(data) > MAX_BYTES:
            raise UnreadableAnswer(f"the answer is over {MAX_BYTES} bytes")
        told = {name.lower(): value for name, value in (machine or {}).items()}
        found: dict[str, Value] = {}
        for line in data.splitlines():
            if not line.strip():
                continue
            name, value = _assignment(line)
            if name.lower() in told and told[name.lower()] == value:
                continue
            setting, value = _understood(name, value)
            if setting in found:
                raise UnreadableAnswer(f"the answer gives {setting} twice")
            found[setting] = value
        profile, addresses = found.pop("profile", ""), found.pop(_ADDRESSES, "")
        if not isinstance(profile, str):
            raise UnreadableAnswer(f"Profile = {profile} is not a text in double quotes")
        if not found.get("network", "-"):  # LARK's VLAN 0: untagged
            del found["network"]
        # a network brings its connectivity, so it has the last word of the two
        ordered = dict(sorted(found.items(), key=lambda item: item[0] == "network"))
        return cls(profile, ordered, str(addresses))

    def contradiction(self, plan: NetworkPlan, words: Vocabulary) -> str:
        """Return what is answered and is not so in the plan that comes of it; empty if nothing."""
        network = words.networks.get(plan.network)
        kind = self.values.get("connectivity", plan.connectivity.value)
        if words.put(plan, "connectivity", kind).connectivity is not plan.connectivity:
            return (
                f"connectivity {kind}, and network '{plan.network}', which is of connectivity "
                f"{plan.connectivity}"
            )
        found = network.addresses if network else AddressMode.STATIC
        if not self.addresses or self.addresses in found.split("+"):
            return ""
        return f"AddressType {self.addresses}, and a network with {found} addresses"


def question(job: Ad, machine: Ad) -> bytes:
    """Write both ads for the program."""
    lines = [*_lines(job), SEPARATOR, *_lines(machine)]
    return "".join(f"{line}\n" for line in lines).encode()


def _assignment(line: bytes) -> tuple[str, Value]:
    try:
        ad = ads.parse(line, "answer")
    except InvalidRequest as error:
        raise UnreadableAnswer(f"{line[:80]!r} is not of the form Name = value") from error
    for assignment in ad.items():
        return assignment
    raise UnreadableAnswer(f"{line[:80]!r} does not give a literal value")


def _understood(name: str, value: Value) -> tuple[str, Value]:
    """Return the setting that an attribute decides, and its value; raises UnreadableAnswer."""
    known = ("profile", *SETTINGS)
    lower = name.lower()
    if lower in known:
        return lower, value
    if lower in _CONFIGURED:
        raise UnreadableAnswer(
            f"it changes {name} to {value}, which is decided by {_CONFIGURED[lower]}"
        )
    if lower == _ADDRESSES:
        kind = value.lower() if isinstance(value, str) else ""
        if kind not in {"static", "dhcp"}:
            raise UnreadableAnswer(f"{name} = {value} is neither static nor dhcp")
        return lower, kind
    if lower not in _OF_MACHINES:
        raise UnreadableAnswer(
            f"it gives {name}; it may give {', '.join(known)}, or LARK's VLAN, NetworkType, "
            "AddressType and IPProtocol"
        )
    if lower == "ipprotocol":
        family = family_of(value)
        if family is None:
            raise UnreadableAnswer(f"{name} = {value} is not IPv4, IPv6 or both")
        value = family.value
    return _OF_MACHINES[lower], value


def _lines(ad: Ad) -> list[str]:
    return [f"{name} = {_literal(value)}" for name, value in ad.items()]


def _literal(value: ads.Value) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r") + '"'
    return str(value).lower() if isinstance(value, bool) else str(value)
