"""Guarantees are promises: never more than there is, and all of it back when a job ends."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lark_agent.errors import Unavailable
from lark_agent.model import Direction, Rates
from lark_agent.shaping.booking import Booking

UPLINK, CMS = Rates(1000, 800), Rates(400, 300)
amounts = st.builds(Rates, st.integers(0, 600), st.integers(0, 600))
steps = st.lists(
    st.tuples(
        st.sampled_from("abcdef"), st.sampled_from(["", "cms", "none"]), amounts, st.booleans()
    )
)


@given(steps)
def test_what_is_promised_is_never_more_than_there_is(
    steps: list[tuple[str, str, Rates, bool]],
) -> None:
    """Whatever is booked, changed and released, all promises can be kept at once."""
    booking = Booking(UPLINK, {"cms": CMS})
    promised: dict[str, tuple[str, Rates]] = {}
    for holder, queue, wanted, release in steps:
        if release:
            booking.release(holder)
            promised.pop(holder, None)
        else:
            with contextlib.suppress(Unavailable):
                booking.book(holder, queue, wanted)
                promised[holder] = (queue, wanted)
        for direction in Direction:
            for name, have in (("", UPLINK), ("cms", CMS), ("none", Rates())):
                taken = sum(r.of(direction) for where, r in promised.values() if where == name)
                taken += CMS.of(direction) if not name else 0
                assert taken <= have.of(direction)
                assert booking.free(name).of(direction) == have.of(direction) - taken


def test_a_job_that_does_not_fit_hears_what_is_left() -> None:
    """The batch system can act on the refusal: it says how much is left of what."""
    booking = Booking(Rates(10**9, 10**9), {})
    booking.book("first", "", Rates(6 * 10**8, 0))
    with pytest.raises(
        Unavailable, match=r"500 Mbit/s sent .* 1 Gbit/s .* uplink 400 Mbit/s are left"
    ):
        booking.book("second", "", Rates(5 * 10**8, 0))
    booking.book("second", "", Rates(4 * 10**8, 10**9))


def test_a_change_that_does_not_fit_keeps_what_was_booked() -> None:
    """A job whose guarantee cannot grow keeps the one it has."""
    booking = Booking(Rates(100, 100), {})
    booking.book("job", "", Rates(60, 0))
    with pytest.raises(Unavailable):
        booking.book("job", "", Rates(101, 0))
    assert booking.free() == Rates(40, 100)


def test_without_an_uplink_rate_nothing_can_be_guaranteed() -> None:
    """The refusal tells the admin which setting is missing."""
    with pytest.raises(Unavailable, match=r"give \[uplink\] a rate"):
        Booking(Rates(), {}).book("job", "", Rates(1, 0))


def test_old_promises_that_no_longer_fit_leave_nothing_free() -> None:
    """After the admin lowered the uplink's rate, jobs keep theirs and no more is promised."""
    booking = Booking(Rates(100, 100), {})
    booking.hold("old", "", Rates(150, 50))
    assert booking.free() == Rates(0, 50)
