"""ClassAd expressions of the site, evaluated as an execution point evaluates START.

MY is the machine, TARGET the job; a name without either is looked up in MY, then in TARGET. The
bindings look up bare names in MY only, so for the time of one evaluation the bare names of the
expression that the machine does not have are lent to it from the job. Which those are is known
when the expression is compiled. An expression that uses both a bare name and MY with the same name
could see the loan through MY and is not accepted; `eval()` is not, because the text it would
evaluate comes from an ad, and nothing that a user wrote is ever evaluated.

Merging both ads instead would let a job answer for the machine: a rule over MY.Trusted must not
look at the job's attribute of that name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import classad2

if TYPE_CHECKING:
    from lark_agent.policy.ads import Ad, Value

# HTCondor's own functions (stringListMember, split, …) exist only after ads were parsed once
tuple(classad2.parseAds("Name = 1\n"))

_TOKEN = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | "(?:[^"\\]|\\.)*" | (?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\w* |
    (?P<name>[A-Za-z_]\w*|'(?:[^'\\]|\\.)*') | (?P<mark>\S)""",
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS = frozenset({"true", "false", "undefined", "error", "is", "isnt"})
_SCOPES = frozenset({"my", "target"})


class NotAnExpression(ValueError):  # noqa: N818  says what the text is not
    """A text of the site is not a ClassAd expression that can be used; says why."""


class Ads:
    """The two ads of one decision, ready for many expressions."""

    def __init__(self, machine: Ad, job: Ad) -> None:
        self.machine = classad2.ClassAd(machine)
        self.job = classad2.ClassAd(job)
        self._in_machine = {name.lower() for name in machine}
        self._in_job = {name.lower(): value for name, value in job.items()}

    def loan(self, names: frozenset[str]) -> dict[str, Value]:
        """Return the attributes of the job among `names` (lower case) that the machine lacks."""
        return {
            name: self._in_job[name]
            for name in names
            if name in self._in_job and name not in self._in_machine
        }


@dataclass(frozen=True, slots=True)
class Expression:
    """One compiled expression."""

    text: str
    tree: classad2.ExprTree
    bare: frozenset[str]
    """Names without MY or TARGET, in lower case."""
    constant: bool
    """True if no attribute is looked at."""

    @classmethod
    def compile(cls, text: str) -> Expression:
        """Parse one expression; raises NotAnExpression."""
        try:
            # in parentheses, or "a; b = 3" would pass as the expression "a"
            tree = classad2.ExprTree(f"({text}\n)")
        except (classad2.ClassAdException, TypeError) as error:
            raise NotAnExpression(
                f"'{text}' is not a ClassAd expression; write one such as Owner == \"alice\""
            ) from error
        bare, mine, theirs = _names(text)
        for name in sorted(bare & mine):
            raise NotAnExpression(
                f"'{text}' uses '{name}' both bare and with MY; write MY.{name} or "
                f"TARGET.{name} for the bare one"
            )
        return cls(text, tree, frozenset(bare), constant=not bare | mine | theirs)

    def evaluate(self, ads: Ads) -> object:
        """Return a Python value, a list of them, or classad2.Value (undefined, error)."""
        loan = ads.loan(self.bare)
        for name, value in loan.items():
            ads.machine[name] = value
        try:
            found = self.tree.eval(ads.machine, ads.job)
            return [_member(each, ads) for each in found] if isinstance(found, list) else found
        finally:
            for name in loan:
                del ads.machine[name]


def _names(text: str) -> tuple[set[str], set[str], set[str]]:
    """Return the attributes that an expression looks at: bare, of MY, of TARGET; lower case.

    Read from the text, since the bindings do not tell MY.Name from Name. Raises NotAnExpression
    for what would look at neither, or evaluate an ad's words.
    """
    found: dict[str, set[str]] = {"": set(), "my": set(), "target": set()}
    tokens = [(m["name"] or "", m["mark"] or "") for m in _TOKEN.finditer(text)]
    tokens = [("", ""), ("", ""), *tokens, ("", "")]
    for before, dot, (name, _), (_, after) in zip(
        tokens, tokens[1:], tokens[2:], tokens[3:], strict=False
    ):
        word = name.strip("'").lower()
        if not word or (word in _KEYWORDS and dot[1] != "."):
            continue
        if after == "(":
            if word == "eval":
                raise NotAnExpression(
                    f"'{text}' calls eval(), which would evaluate what a job wrote; look at the "
                    "attribute itself"
                )
        elif dot[1] == ".":
            scope = before[0].lower()
            if scope not in _SCOPES:
                raise NotAnExpression(
                    f"'{text}' looks for '{name}' in something; only MY and TARGET have attributes"
                )
            found[scope].add(word)
        elif word not in _SCOPES:
            found[""].add(word)
        elif after != ".":
            raise NotAnExpression(f"'{text}' uses {name} alone; write {name}.Name")
    return found[""], found["my"], found["target"]


def _member(value: object, ads: Ads) -> object:
    """Evaluate an element of a list, which the bindings leave as an expression."""
    if isinstance(value, classad2.ExprTree):
        return value.eval(ads.machine, ads.job)
    return value


def described(value: object) -> str:
    """Write a value as the site knows it from expressions."""
    if isinstance(value, classad2.Value):
        return str(value.name).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return "{" + ", ".join(described(each) for each in value) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
