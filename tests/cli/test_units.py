"""Units: what people read, and what they type."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lark_agent.cli import units

NOW = 1_700_000_000_123_456_789


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (29_536_789, "29.5 MB"),
        (2**64 - 1, "18.4 EB"),
    ],
)
def test_bytes_have_si_prefixes_and_three_digits(count: int, text: str) -> None:
    """A number rolls over to the next prefix where rounding would give it a fourth digit."""
    assert units.size(count) == text


def test_exact_bytes_keep_every_digit() -> None:
    """`--bytes` loses nothing."""
    assert units.size(29_536_789, exact=True) == "29,536,789"


@given(st.integers(1000, 2**64))
def test_what_people_read_is_within_half_a_percent(count: int) -> None:
    """Three digits are never further off than half of the last one."""
    number, unit = units.size(count).split()
    assert len(number.replace(".", "")) == 3
    assert abs(float(number) * 1000 ** units.PREFIXES.index(unit[:-1]) - count) <= count * 0.00502


def test_rates_are_bits_a_second() -> None:
    """125 MB in a second are one Gbit/s; no time, no rate."""
    assert units.rate(125_000_000, units.SECOND_NS) == "1.00 Gbit/s"
    assert units.rate(125_000_000, 10 * units.SECOND_NS) == "100 Mbit/s"
    assert units.rate(5, 0) == "-"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (180_000, "2d02h")],
)
def test_durations_have_two_units(seconds: int, text: str) -> None:
    """The two largest units are enough."""
    assert units.duration(seconds * units.SECOND_NS) == text


def test_a_clock_that_went_back_is_no_negative_duration() -> None:
    """Workers' clocks differ from the reader's."""
    assert units.duration(-5 * units.SECOND_NS) == "0s"


@pytest.mark.parametrize(
    ("text", "before"),
    [("90s", 90), ("15m", 900), ("2h", 7200), ("1d", 86400), ("1w", 604_800), ("1d12h", 129_600)],
)
def test_spans_count_back_from_now(text: str, before: int) -> None:
    """A span means that long ago."""
    assert units.moment(text, NOW) == NOW - before * units.SECOND_NS


def test_a_span_before_1970_is_the_beginning() -> None:
    """Whoever asks for the last 9999 weeks wants everything."""
    assert units.moment("9999w", NOW) == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2023-11-14", 1_699_920_000),
        ("2023-11-14T22:13:20", 1_700_000_000),
        ("2023-11-14T22:13:20Z", 1_700_000_000),
        ("2023-11-14T23:13:20+01:00", 1_700_000_000),
    ],
)
def test_times_are_iso_8601(text: str, seconds: int) -> None:
    """Local time (here: UTC) unless an offset is given."""
    assert units.moment(text, NOW) == seconds * units.SECOND_NS


def test_a_time_without_offset_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """What people type is their own time, as what they read is."""
    monkeypatch.setenv("TZ", "EST5")
    time.tzset()
    stamp = units.moment("2023-11-14T17:13", NOW)
    assert stamp == 1_699_999_980 * units.SECOND_NS
    assert units.local(stamp) == "2023-11-14 17:13"


@given(st.text(max_size=12))
def test_nothing_else_is_a_time(text: str) -> None:
    """Any text is read or refused with the accepted forms, and gives no negative time."""
    try:
        read = units.moment(text, NOW)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert read >= 0
    assert "before" in refusal or not refusal


def test_iso_keeps_nanoseconds() -> None:
    """Programs lose no digit; no time is null."""
    assert units.iso(NOW) == "2023-11-14T22:13:20.123456789Z"
    assert units.iso(0) is None


def test_sparkline_shows_silence_as_space() -> None:
    """The peak is full, nothing is nothing, and a little is not nothing."""
    assert units.sparkline([0, 1, 500, 1000]) == " ▁▅█"
    assert units.sparkline([]) == ""
    assert units.sparkline([0, 0]) == "  "


@given(st.text())
def test_visible_text_cannot_act_on_a_terminal(text: str) -> None:
    """No control character survives, and printable text is unchanged."""
    shown = units.visible(text)
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text
