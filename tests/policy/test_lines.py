"""Where a key stands in a file."""

from __future__ import annotations

import pytest

from lark_agent.policy.lines import line_of, positions

TEXT = """\
worker = "w1"
[pool]
slots = 4 # few
  "ready" = 2
[classes]
campus = []
[profiles.near]
reach = []
[[rules]]
when = 'a'
set = { peers = 'b', reach = 'c' }
[[rules]]  # second
when = 'a'
[rules.set]
peers = 'b'
"""


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("worker", 1),
        ("pool", 2),
        ("pool.slots", 3),
        ("pool.ready", 4),
        ("classes.campus[2]", 6),
        ("profiles.near.reach", 8),
        ("profiles.near.peers", 7),
        ("rules[1]", 9),
        ("rules[1].when", 10),
        ("rules[1].set.reach", 11),
        ("rules[2]", 12),
        ("rules[2].profile", 12),
        ("rules[2].set.peers", 15),
        ("rules[2].set.reach", 14),
        ("requests.profiles", None),
        ("", None),
    ],
)
def test_a_key_has_a_line(key: str, line: int | None) -> None:
    """Its own where it is assigned, else that of the table around it."""
    assert line_of(key, positions(TEXT)) == line
