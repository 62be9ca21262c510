"""Units that people read, and the way back from what people type.

Bytes are shown with SI prefixes (1 kB = 1000 bytes, as network and storage vendors count) and
three significant digits, rates in bit/s the same way, times in the reader's time zone. Programs
get exact integers and ISO 8601 in UTC (`lark_agent.cli.as_json`), never these strings. The
functions are pure: the present time is always an argument.

Everything that a job's user had a hand in (job ids, accounting groups) goes through `visible`
before it reaches a terminal: an escape sequence in a job's name must not act on the screen of
the admin who lists it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

SECOND_NS = 1_000_000_000
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
SPARKS = "▁▂▃▄▅▆▇█"


def scaled(value: float, unit: str) -> str:
    """Write a quantity with an SI prefix and three digits: 12345, "B" gives "12.3 kB"."""
    for prefix in PREFIXES:
        # 999.5 would round to 1000: that belongs to the next prefix
        if value < 999.5 or prefix == PREFIXES[-1]:
            break
        value /= 1000
    if not prefix:
        return f"{value:.0f} {unit}"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {prefix}{unit}"


def size(count: int, *, exact: bool = False) -> str:
    """Write bytes for people; `exact` gives every digit, grouped by thousands."""
    return f"{count:,}" if exact else scaled(count, "B")


def rate(bytes_moved: int, interval_ns: int) -> str:
    """Write what moved in an interval as bit/s; "-" where no time passed."""
    if interval_ns <= 0:
        return "-"
    return scaled(bytes_moved * 8 * SECOND_NS / interval_ns, "bit/s")


def money(millionths: int) -> str:
    """Write a cost in the site's currency unit: cents, below one unit every digit there is."""
    if millionths >= 1_000_000:
        return f"{millionths / 1_000_000:,.2f}"
    return f"{millionths / 1_000_000:.6f}".rstrip("0").rstrip(".")


def duration(nanoseconds: int) -> str:
    """Write a span by its two largest units: "45s", "12m05s", "3h07m", "2d04h"."""
    seconds = max(nanoseconds, 0) // SECOND_NS
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds // 60 % 60:02}m"
    return f"{seconds // 86400}d{seconds // 3600 % 24:02}h"


def local(time_ns: int, *, seconds: bool = False) -> str:
    """Write a time in the reader's time zone; "-" for 0."""
    if not time_ns:
        return "-"
    form = "%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M"
    return datetime.fromtimestamp(time_ns // SECOND_NS, UTC).astimezone().strftime(form)


def utc_hour(time_ns: int) -> str:
    """Write a whole UTC hour."""
    return datetime.fromtimestamp(time_ns // SECOND_NS, UTC).strftime("%Y-%m-%d %H:%M")


def iso(time_ns: int) -> str | None:
    """Write a time for programs: ISO 8601, UTC, all nine digits of the second; None for 0."""
    if not time_ns:
        return None
    whole = datetime.fromtimestamp(time_ns // SECOND_NS, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{time_ns % SECOND_NS:09}Z"


def moment(text: str, now_ns: int) -> int:
    """Read "90m", "1d12h" (so long before now) or an ISO 8601 date or time, as UTC nanoseconds.

    A time without an offset is the reader's local time. Raises ValueError with the accepted forms.
    """
    if re.fullmatch(r"(\d{1,9}[smhdw])+", text):
        parts = re.findall(r"(\d+)([smhdw])", text)
        return max(now_ns - sum(int(n) * SECONDS[unit] for n, unit in parts) * SECOND_NS, 0)
    try:
        stamp = datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(
            f"'{text}' is neither a span before now (90s, 15m, 2h, 1d, 1w, 1d12h) "
            "nor a time (2026-11-22, 2026-11-22T20:00, 2026-11-22T20:00Z)"
        ) from error
    if stamp < 0:
        raise ValueError(f"'{text}' is before 1970")
    return round(stamp * 1000) * (SECOND_NS // 1000)


def sparkline(values: list[float]) -> str:
    """Draw values as bars of eight heights; zero is a space, so that silence looks like silence."""
    top = max(values, default=0)
    return "".join(SPARKS[min(int(v / top * 8), 7)] if v > 0 else " " for v in values)


def visible(text: str) -> str:
    """Write control and other unprintable characters as escapes, so that they cannot act."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
