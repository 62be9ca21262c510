"""Rates and sizes read as people write them, and what is written reads back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lark_agent.model import Rates
from lark_agent.quantities import NotAQuantity, rate_text, rates, rates_text, size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100 Mbit/s", Rates(10**8, 10**8)),
        ("1.5Gbps", Rates(1_500_000_000, 1_500_000_000)),
        ("10 Mbit/s sent, 1 Gbit/s received", Rates(10**7, 10**9)),
        ("64 kbit/s RECEIVED", Rates(0, 64_000)),
        (250, Rates(250 * 10**6, 250 * 10**6)),
        (0.5, Rates(500_000, 500_000)),
        (0, Rates()),
    ],
)
def test_rates_are_read(text: object, expected: Rates) -> None:
    """Both directions, or each; a bare number is Mbit/s, as in RequestBandwidth."""
    assert rates(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "fast", "100", "100 MB/s", "-1 Mbit/s", "1 Gbit/s, 2 Gbit/s", "1 bit/s up", "11 Tbit/s",
     -1, True, None, float("nan"), float("inf"), "1 Gbit/s sent, 1 Gbit/s sent"],
)  # fmt: skip
def test_what_is_no_rate_is_refused(text: object) -> None:
    """Nothing is guessed."""
    with pytest.raises(NotAQuantity):
        rates(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2 TB", 2 * 10**12), ("64 MiB", 1 << 26), ("500", 500), (7, 7), ("1.5 kB", 1500), ("0 B", 0)],
)
def test_sizes_are_read(text: object, expected: int) -> None:
    """Powers of 1000 or, with an i, of 1024; a bare number is bytes."""
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "many", "-1 GB", -1, True, None, "8192 PiB", "1 GB sent"])
def test_what_is_no_size_is_refused(text: object) -> None:
    """Nothing is guessed."""
    with pytest.raises(NotAQuantity):
        size(text)


@given(st.integers(0, 10**9))
def test_a_written_rate_reads_back(rate: int) -> None:
    """What the agent says about a rate can be put into a configuration."""
    assert rates(rate_text(rate)) == Rates(rate, rate)


@given(st.builds(Rates, st.integers(0, 10**9), st.integers(0, 10**9)).filter(bool))
def test_written_rates_read_back(given_rates: Rates) -> None:
    """The same for both directions."""
    assert rates(rates_text(given_rates)) == given_rates
