"""Job ads as values that rules may look at.

An ad is its writer's word, and writers are users. Only attributes with a literal value (string,
integer, real, boolean) are taken; expressions such as Requirements stay undefined. So nothing that
a user wrote is ever evaluated, however deep or slow it is made to be, and classad2 parses only the
site's own expressions. Both ways in which HTCondor writes ads are read: one ``Name = value`` per
line, and the same between brackets with semicolons.
"""

from __future__ import annotations

import re

from lark_agent.errors import InvalidRequest

MAX_BYTES = 1 << 20
MAX_ATTRIBUTES = 2000

Value = str | int | float | bool
Ad = dict[str, Value]

_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_.]{0,127})\s*=\s*(\S.*)")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_REAL = re.compile(r"[+-]?\d{1,30}\.?\d{0,30}(?:[eE][+-]?\d{1,3})?")
_ESCAPES = {'\\"': '"', "\\\\": "\\", "\\n": "\n", "\\t": "\t", "\\'": "'"}


def parse(data: bytes, kind: str, requests: frozenset[str] = frozenset()) -> Ad:
    """Return the literal attributes of an ad; `kind` ("job ad") names it in errors.

    Names keep the case of the ad (ClassAds compare them without it). `requests` are lower-case
    names by which the ad's writer asks for something: to pass over one because it is an expression
    would be to ignore a request in silence. Raises InvalidRequest for these, and if the bytes are
    not an ad at all.
    """
    if len(data) > MAX_BYTES:
        raise InvalidRequest(
            f"the {kind} is over {MAX_BYTES} bytes; a batch system's are about 16 kB"
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the {kind} is not text ({error})") from error
    ad: Ad = {}
    looks_like_one = not text.strip()
    for line in text.split("\n"):  # splitlines() also splits inside values, at U+2028 and others
        match = _LINE.fullmatch(line.strip().strip("[];").strip())
        if match is None:
            continue
        looks_like_one = True
        value = _literal(match[2])
        if value is not None:
            ad[match[1]] = value
        elif match[1].lower() in requests and match[2].strip().lower() != "undefined":
            raise InvalidRequest(
                f"the {kind} has {match[1]} = {match[2][:80]}, which is an expression; "
                "write the value itself: true, a number, or a text in double quotes"
            )
        if len(ad) > MAX_ATTRIBUTES:
            raise InvalidRequest(f"the {kind} has over {MAX_ATTRIBUTES} attributes")
    if not looks_like_one:
        raise InvalidRequest(f"the {kind} has no line of the form 'Name = value'")
    return ad


def text_of(ad: Ad, *names: str) -> str:
    """Return the first non-empty string among attributes, in any case; "" if there is none."""
    folded = {name.lower(): value for name, value in ad.items()}
    for name in names:
        value = folded.get(name.lower())
        if isinstance(value, str) and value:
            return value
    return ""


def integer_of(ad: Ad, name: str) -> int | None:
    """Return an integer attribute, whatever the name's case; None if there is none."""
    for found, value in ad.items():
        if found.lower() == name.lower() and isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _literal(text: str) -> Value | None:
    text = text.strip()
    if match := _STRING.fullmatch(text):
        return re.sub(r"\\.", lambda found: _ESCAPES.get(found[0], found[0]), match[1])
    if _INTEGER.fullmatch(text):
        return int(text)
    if _REAL.fullmatch(text):
        return float(text)
    return {"true": True, "false": False}.get(text.lower())
