"""From samples of a counter to rates in windows: pure functions.

A `Series` is what one stream received: times and IP bytes, about fifty a second. Everything said
about it is computed from pairs of samples, never from an assumed rhythm: a window of 100 ms is the
shortest stretch between two samples that is *at least* 100 ms, and its rate is the difference of
the bytes over the difference of the times. "Any 5 s" is every such stretch that begins at a sample.

A rate below some packets a window is as coarse as its packets: in 100 ms of 1 Mbit/s there are 8.3
of them. So `peak` leaves out one packet of each window; at 100 Mbit/s that is 0.1 %.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SECOND_NS = 10**9
PACKET = 1500
"""IP bytes of a full segment on the lab's links."""
SEGMENT = 1448
"""Its payload: IPv4 and TCP headers are 20 bytes each, the timestamp option 12."""


class NotFull(ValueError):  # noqa: N818  says what the segments are not
    """A stream did not send full segments, so that counting them does not give its bytes."""


@dataclass(frozen=True, slots=True)
class Series:
    """One stream: strictly increasing times (ns) and the IP bytes received by then."""

    times: tuple[int, ...]
    octets: tuple[int, ...]

    @classmethod
    def of(cls, samples: Sequence[Sequence[int]]) -> Self:
        """Read a taker's samples (time, segments, payload); raises NotFull."""
        times, segments, payload = zip(*samples, strict=True)
        if segments[-1] > 100 and payload[-1] < 0.98 * SEGMENT * segments[-1]:
            raise NotFull(
                f"{segments[-1]} segments carried {payload[-1]} bytes, {SEGMENT} were expected "
                "in each; more than one in fifty was sent again or not full"
            )
        return cls(tuple(times), tuple(number * PACKET for number in segments))

    def between(self, first: int, last: int) -> Self:
        """Return the samples from `first` to `last` (ns)."""
        begin, end = bisect_left(self.times, first), bisect_right(self.times, last)
        return type(self)(self.times[begin:end], self.octets[begin:end])

    @property
    def mean(self) -> float:
        """The rate over all of it, in bit/s; 0 without two samples."""
        if len(self.times) < 2:
            return 0.0
        return _rate(self.octets[-1] - self.octets[0], self.times[-1] - self.times[0])

    def rates(self, seconds: float) -> Iterator[float]:
        """Give the rate (bit/s) of the window of at least `seconds` that begins at each sample."""
        for begin, end in self._windows(seconds):
            yield _rate(self.octets[end] - self.octets[begin], self.times[end] - self.times[begin])

    def peak(self, seconds: float) -> float:
        """Return the largest rate of such a window, one packet of each left out."""
        return max(
            (
                _rate(
                    self.octets[end] - self.octets[begin] - PACKET,
                    self.times[end] - self.times[begin],
                )
                for begin, end in self._windows(seconds)
            ),
            default=0.0,
        )

    def apart(self, planned: float, seconds: float) -> float:
        """Return how far the worst such window is from a rate, as a share of it; 1 without any."""
        return max((abs(rate / planned - 1) for rate in self.rates(seconds)), default=1.0)

    def curve(self, seconds: float) -> tuple[list[float], list[float]]:
        """Return middles (s) and rates (bit/s) of windows side by side, for a figure."""
        middles, rates, begin = [], [], 0
        for first, end in self._windows(seconds):
            if first < begin:
                continue
            middles.append((self.times[first] + self.times[end]) / 2 / SECOND_NS)
            apart = self.times[end] - self.times[first]
            rates.append(_rate(self.octets[end] - self.octets[first], apart))
            begin = end
        return middles, rates

    def _windows(self, seconds: float) -> Iterator[tuple[int, int]]:
        for begin, time in enumerate(self.times):
            end = bisect_left(self.times, time + round(seconds * SECOND_NS))
            if end == len(self.times):
                return
            yield begin, end


def _rate(octets: int, nanoseconds: int) -> float:
    return octets * 8 * SECOND_NS / nanoseconds
