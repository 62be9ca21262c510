"""Where in a TOML file a key stands.

tomllib tells no lines, so the text is scanned for table headers and assignments. A key inside an
inline table, a dotted key or a text of several lines may not be found; then the nearest table
around it is.
"""

from __future__ import annotations

import re
from collections import Counter

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\"'-]+)\s*=")
_QUOTES = str.maketrans("", "", "\"' ")


def positions(text: str) -> dict[str, int]:
    """Return key (as in findings: pool.slots, rules[2].when) → line, counted from 1."""
    found: dict[str, int] = {}
    arrays: Counter[str] = Counter()
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.fullmatch(line):
            table = header[2].translate(_QUOTES)
            if header[1] == "[[":
                arrays[table] += 1
                table = f"{table}[{arrays[table]}]"
            elif (first := table.partition("."))[0] in arrays:
                table = f"{first[0]}[{arrays[first[0]]}].{first[2]}"
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            name = key[1].translate(_QUOTES)
            found.setdefault(f"{table}.{name}".lstrip("."), number)
    return found


def line_of(key: str, found: dict[str, int]) -> int | None:
    """Return the line of a key, else of what is around it; None if nothing is."""
    while key:
        if key in found:
            return found[key]
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return None
