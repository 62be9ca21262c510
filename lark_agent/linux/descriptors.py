"""Descriptors that strangers sent, closed where it may take its time.

Closing the last descriptor of a file can block for as long as its sender likes: a TCP socket with
SO_LINGER waits for a peer that never reads. An event loop must therefore never close what came
over a public socket; a thread of its own does.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def close_aside(descriptors: Iterable[int]) -> None:
    """Close in a short-lived thread: the caller never waits, nor does the end of the process."""
    numbers = tuple(descriptors)
    if numbers:
        threading.Thread(target=_close, args=(numbers,), name="close", daemon=True).start()


def _close(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # what is left to say of a stranger's file
            os.close(descriptor)
