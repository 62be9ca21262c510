"""The language spoken with the site's callout: both ads in, a few overrides out.

As in LARK, the program reads the job ad, a line of six dashes, and the machine ad, one
``Name = value`` a line. It sees what rules see: literal attributes, with the agent's facts in place
of what the ad says of owner, group and identity. Its answer is in the same form: Profile and any of
the settings of a plan, with literal values. No lines mean no objection.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lark_agent.errors import InvalidRequest
from lark_agent.policy import ads
from lark_agent.policy.vocabulary import SETTINGS

if TYPE_CHECKING:
    from lark_agent.policy.ads import Ad, Value

SEPARATOR = "------"
MAX_BYTES = 65_536
"""Of what the program is told, and of what it may answer."""


class UnreadableAnswer(ValueError):  # noqa: N818  says what the answer is
    """The program said something that is no answer."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the callout overrules: "" and nothing where it has no objection."""

    profile: str = ""
    """Replaces everything that the rules decided."""
    values: dict[str, Value] = field(default_factory=dict)
    """One of `SETTINGS` → value; each replaces that value alone."""

    @classmethod
    def parse(cls, data: bytes) -> Overrides:
        """Read an answer; raises UnreadableAnswer."""
        if len(data) > MAX_BYTES:
            raise UnreadableAnswer(f"the answer is over {MAX_BYTES} bytes")
        found: dict[str, Value] = {}
        for line in data.splitlines():
            if not line.strip():
                continue
            name, value = _assignment(line)
            if name in found:
                raise UnreadableAnswer(f"the answer gives {name} twice")
            found[name] = value
        profile = found.pop("profile", "")
        if not isinstance(profile, str):
            raise UnreadableAnswer(f"Profile = {profile} is not a text in double quotes")
        return cls(profile, found)


def question(job: Ad, machine: Ad) -> bytes:
    """Write both ads for the program."""
    lines = [*_lines(job), SEPARATOR, *_lines(machine)]
    return "".join(f"{line}\n" for line in lines).encode()


def _assignment(line: bytes) -> tuple[str, Value]:
    try:
        ad = ads.parse(line, "answer")
    except InvalidRequest as error:
        raise UnreadableAnswer(f"{line[:80]!r} is not of the form Name = value") from error
    known = ("profile", *SETTINGS)
    for name, value in ad.items():
        if name.lower() not in known:
            raise UnreadableAnswer(f"it gives {name}; it may give {', '.join(known)}")
        return name.lower(), value
    raise UnreadableAnswer(f"{line[:80]!r} does not give a literal value")


def _lines(ad: Ad) -> list[str]:
    return [f"{name} = {_literal(value)}" for name, value in ad.items()]


def _literal(value: ads.Value) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r") + '"'
    return str(value).lower() if isinstance(value, bool) else str(value)
