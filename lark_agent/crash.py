"""Named places where a test may end the process, as power and SIGKILL do: at once.

A step that lasts (in the journal, in the kernel) is followed by `here(name)`, so that a test can
stand the agent still between any two of them and see what the next one makes of it. The names are
collected from the source by the test, so none can be forgotten; a name stands in one place.

`LARK_CRASH_AT=claim.recorded` kills at the first pass of that point, `claim.recorded:3` at the
third. Without it, as outside of tests, a pass is one comparison.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "LARK_CRASH_AT"
_name, _, _pass = os.environ.get(VARIABLE, "").partition(":")
_left = int(_pass or 1)


def here(name: str) -> None:
    """Kill this process if a test asked for it here."""
    global _left  # noqa: PLW0603  counts the passes of this process
    if name != _name:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
