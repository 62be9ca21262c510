"""Code points that follow from priorities: where they hold, and what holds over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lark_agent.policy.overrides import Overrides
from lark_agent.policy.site import Asking
from tests.policy.test_site import ALICE, decide, site

if TYPE_CHECKING:
    from lark_agent.policy.site import Step

SITE = """default_profile = "p"
[uplink]
rate = "1 Gbit/s"
priority_dscp = [46, 34, 26, 18, 10, 2, 1, 8]
[queues.first]
priority = 1
[queues.last]
priority = 6
"""


@pytest.mark.parametrize(
    ("profile", "dscp"),
    [
        ("", 10),
        ("priority = 0", 46),
        ("priority = 7", 8),
        ('queue = "first"', 34),
        ('queue = "first"\npriority = 2', 46),
        ('queue = "last"\npriority = 3', 2),
        ("dscp = 0\npriority = 0", 0),
        ("dscp = 12", 12),
        ('connectivity = "none"', 0),
        ('connectivity = "host"', 0),
    ],
)
def test_a_place_in_the_hierarchy_has_a_code_point(profile: str, dscp: int) -> None:
    """Priority counts from the queue's; a code point of the profile's own holds over it."""
    assert decide(site(f"{SITE}[profiles.p]\n{profile}\n"), ALICE).dscp == dscp


def test_without_a_table_nothing_is_marked() -> None:
    """Priority alone writes no header."""
    quiet = SITE.replace("priority_dscp", "# priority_dscp")
    assert decide(site(f"{quiet}[profiles.p]\npriority = 0\n"), ALICE).dscp == 0


def test_rules_and_callouts_may_say_priority_again() -> None:
    """The word takes a profile's own code point back; the priority may be theirs as well."""
    profile = f"{SITE}[profiles.p]\ndscp = 12\n"
    rule = "[[rules]]\nwhen = 'true'\nset = { dscp = '\"priority\"', priority = '1' }\n"
    assert decide(site(profile + rule), ALICE).dscp == 34
    answer = Overrides.parse(b'Dscp = "priority"\nPriority = 6\n')
    assert decide(site(profile), ALICE, overrides=answer).dscp == 1


def test_explain_names_what_the_code_point_follows_from() -> None:
    """The step says the place, and who brought it about stands before it."""
    steps: list[Step] = []
    policy = site(f'{SITE}[profiles.p]\nqueue = "first"\n')
    policy.plan(Asking(ALICE, {}), steps=steps)
    assert steps[-1] == ("uplink.priority_dscp", "dscp", "34", "priority 4 in queue first")
