from __future__ import annotations

from itertools import accumulate

import pytest

from tests.experiments import __main__ as experiments
from tests.experiments.results import Outcome


@pytest.mark.parametrize(
    ("taken", "set_aside"),
    [
        ([0], [False]),
        ([1000, 0], [True, False]),
        ([1000, 1000, 1000], [True, True, False]),
    ],
)
def test_a_run_of_which_others_took_much_is_made_again(
    taken: list[int], set_aside: list[bool]
) -> None:
    """It is set aside and stays among the results; after three, the last counts as it is."""
    made: list[Outcome] = []

    def experiment() -> Outcome:
        made.append(Outcome(f"run {len(made)}", "", (), ()))
        return made[-1]

    looks = iter([look for total in accumulate(taken, initial=0) for look in (total, total)][1:])
    runs = experiments.repeat("shares", experiment, lambda: float(next(looks)))
    assert [run.set_aside for run in runs] == set_aside
    assert [run.outcome for run in runs] == made
    told = experiments.told(runs)["outcomes"]
    assert isinstance(told, list)
    assert [run["set_aside"] for run in told] == set_aside
