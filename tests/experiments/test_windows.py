from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.experiments.windows import PACKET, SECOND_NS, SEGMENT, NotFull, Series

STEP_NS = 20_000_000


def steady(rate: int, seconds: float = 6.0) -> Series:
    """Return samples of a stream of `rate` bit/s that never varies."""
    times = range(0, round(seconds * SECOND_NS), STEP_NS)
    return Series(tuple(times), tuple(time * rate // 8 // SECOND_NS for time in times))


@settings(deadline=None, max_examples=20)  # a busy machine is not a wrong result
@given(st.integers(10**6, 10**10))
def test_a_steady_stream_is_its_rate_in_every_window(rate: int) -> None:
    """A stream that never varies has its rate on the mean and in any window of any length."""
    series = steady(rate)
    assert series.mean == pytest.approx(rate, rel=1e-3)
    assert series.apart(rate, 5.0) < 1e-3
    assert all(found == pytest.approx(rate, rel=1e-3) for found in series.rates(0.1))


def test_a_burst_between_two_samples_is_a_spike() -> None:
    """What 100 ms carried above the rate shows in the peak, though 5 s hardly notice it."""
    rate = 100 * 10**6
    series = steady(rate)
    half = len(series.times) // 2
    burst = rate // 8 // 50  # 20 ms more
    octets = series.octets[:half] + tuple(octets + burst for octets in series.octets[half:])
    bursty = Series(series.times, octets)
    assert bursty.peak(0.1) / rate == pytest.approx(1.2, abs=0.01)
    assert bursty.apart(rate, 5.0) < 0.01


def test_a_pause_shows_in_long_windows_not_in_the_peak() -> None:
    """A stream that stops for 0.3 s of 5 s is 6 % apart and has no spike."""
    rate = 100 * 10**6
    series = steady(rate)
    later = tuple(time if time < SECOND_NS else time + 300_000_000 for time in series.times)
    paused = Series(later, series.octets)
    assert paused.apart(rate, 5.0) == pytest.approx(0.06, abs=0.005)
    assert paused.peak(0.1) <= rate


def test_a_late_sample_makes_a_longer_window_not_a_faster_one() -> None:
    """Dropping samples, as a busy machine does, changes no rate of a steady stream."""
    series = steady(10**9)
    kept = [n for n in range(len(series.times)) if n % 7 != 3 and n % 11]
    late = Series(tuple(series.times[n] for n in kept), tuple(series.octets[n] for n in kept))
    assert late.peak(0.1) <= 10**9
    assert late.apart(10**9, 1.0) < 1e-3


def test_one_packet_more_is_no_spike() -> None:
    """At 1 Mbit/s a window holds 8 or 9 packets, and which of them is not a matter of the rate."""
    rate = 10**6
    packets = tuple(range(0, 5 * SECOND_NS, PACKET * 8 * 1000))
    series = Series(packets, tuple(PACKET * number for number in range(len(packets))))
    assert series.peak(0.1) <= 1.01 * rate


def test_too_short_a_stream_keeps_no_promise() -> None:
    """A stream that ended before the window was over counts as entirely apart."""
    assert steady(10**6, 2.0).apart(10**6, 5.0) == 1.0


def test_between_leaves_out_the_rest() -> None:
    """Only samples inside the given times count."""
    part = steady(10**6).between(SECOND_NS, 2 * SECOND_NS)
    assert (part.times[0], part.times[-1]) == (SECOND_NS, 2 * SECOND_NS)


def test_the_curve_has_windows_side_by_side() -> None:
    """A figure of 6 s in windows of 0.1 s has about 60 points, each at its own time."""
    middles, rates = steady(10**8).curve(0.1)
    assert 55 <= len(middles) <= 60
    assert middles == sorted(set(middles))
    assert rates == pytest.approx([10**8] * len(rates), rel=1e-3)


def test_segments_that_are_not_full_are_refused() -> None:
    """Counting packets gives bytes only if they are full; a stream of small ones is no measure."""
    full = [(0, 0, 0), (SECOND_NS, 1000, 1000 * SEGMENT)]
    assert Series.of(full).octets[-1] == 1000 * PACKET
    with pytest.raises(NotFull, match="sent again or not full"):
        Series.of([(0, 0, 0), (SECOND_NS, 1000, 1000 * 1000)])
