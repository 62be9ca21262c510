"""Code points by priority: the switches behind the worker learn what ranks first on it.

`priority` orders jobs where this worker's packets wait, in its own hierarchy; other boxes see
packets only, and their DSCP. A site that gives `[uplink] priority_dscp` lets every job that has no
`dscp` of its own send with the code point of its place: the job's priority, counted from its
queue's, as the hierarchy itself counts it. A changed priority changes the code point with it.

It is off where the site says nothing. A code point means what the site's network makes of it (on
many, nothing, or a bleached field; on some, a charge), so no default would be right. A job without
a sandbox, or without a network, has none: there is nothing that could write it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lark_agent.model import Connectivity, precedence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lark_agent.model import NetworkPlan

BY = "uplink.priority_dscp"
"""Who says it, for `lark policy explain`."""
OF_PRIORITY = "priority"
"""The word for the code point of the job's place."""
_UNMARKED = frozenset({Connectivity.HOST, Connectivity.NONE})


def marked(plan: NetworkPlan, points: Sequence[int], queues: Mapping[str, int]) -> NetworkPlan:
    """Return a plan with the code point of its place, unless it has one of its own.

    `points` are the site's, for the places 0 to 7, or none; `queues` the priority of each queue.
    """
    if not points or not plan.dscp_of_priority:
        return plan
    if plan.connectivity in _UNMARKED:
        return replace(plan, dscp=0)
    return replace(plan, dscp=points[precedence(plan.priority, queues.get(plan.queue))])
