"""Rates and sizes as people write them.

Rates: "100 Mbit/s" for both directions, "10 Mbit/s sent, 1 Gbit/s received" for each (a direction
left out has none); a bare number is Mbit/s, the unit of LARK's RequestBandwidth. Sizes: "2 TB"
(powers of 1000, SI) or "64 MiB" (powers of 1024, IEC 80000-13); a bare number is bytes. Case does
not matter, nor does the space between number and unit.
"""

from __future__ import annotations

import re

from lark_agent.model import Rates

_NUMBER = r"(\d{1,15}(?:\.\d{1,9})?)"
_RATE = re.compile(rf"{_NUMBER}\s*([kmgt]?)(?:bit/s|bps|bit)(?:\s+(sent|received))?", re.IGNORECASE)
_SIZE = re.compile(rf"{_NUMBER}\s*(?:([kmgtp]?)(i?)b?)", re.IGNORECASE)
_PREFIXES = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DECIMAL = {10**12: "T", 10**9: "G", 10**6: "M", 10**3: "k"}
MOST_RATE = 10**13
"""10 Tbit/s."""
MOST_SIZE = 2**62


class NotAQuantity(ValueError):  # noqa: N818  says what the text is not
    """A text is not a rate or size; says how to write one."""


def rates(value: object) -> Rates:
    """Read a rate in bit/s for each direction; raises NotAQuantity."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not 0 <= value <= MOST_RATE / 10**6:
            raise NotAQuantity(f"{value} Mbit/s is no rate")
        return Rates(round(value * 10**6), round(value * 10**6))
    found: dict[str, int] = {}
    parts = str(value).split(",") if isinstance(value, str) else [""]
    for part in parts:
        match = _RATE.fullmatch(part.strip())
        if match is None:
            raise NotAQuantity(
                f"'{value}' is not a rate; write one such as 100 Mbit/s, "
                "or 10 Mbit/s sent, 1 Gbit/s received"
            )
        rate = round(float(match[1]) * 1000 ** _PREFIXES[match[2].lower()])
        if rate > MOST_RATE:
            raise NotAQuantity(f"'{value}' is more than 10 Tbit/s")
        for direction in [match[3].lower()] if match[3] else ["sent", "received"]:
            if direction in found:
                raise NotAQuantity(f"'{value}' gives two rates for what is {direction}")
            found[direction] = rate
    return Rates(found.get("sent", 0), found.get("received", 0))


def size(value: object) -> int:
    """Read a number of bytes; raises NotAQuantity."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_SIZE:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise NotAQuantity(f"'{value}' is not a size; write one such as 500 MB, 2 TB or 64 MiB")
    base = 1024 if match[3] else 1000
    found = int(float(match[1]) * base ** _PREFIXES[match[2].lower()])
    if found > MOST_SIZE:
        raise NotAQuantity(f"'{value}' is more than can be counted")
    return found


def rate_text(rate: int) -> str:
    """Write a rate in bit/s for people; it reads back as the same."""
    for unit, letter in _DECIMAL.items():
        if rate >= unit:
            return f"{rate / unit:.9g} {letter}bit/s"
    return f"{rate} bit/s"


def rates_text(given: Rates) -> str:
    """Write the rates of both directions for people."""
    if not given:
        return "none"
    if given.sent == given.received:
        return rate_text(given.sent)
    parts = {"sent": given.sent, "received": given.received}
    return ", ".join(f"{rate_text(rate)} {name}" for name, rate in parts.items() if rate)
