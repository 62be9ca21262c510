"""Figures from panels, with matplotlib: the common choice, maintained, writes SVG and PNG.

SVG keeps text as text and has neither date nor random ids, so that a figure in the repository
changes only when its data do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from tests.experiments.results import Outcome, Panel

WIDTH_INCHES, HEIGHT_INCHES = 4.4, 3.2
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "lark", "font.size": 9.0}


def draw(outcome: Outcome, folder: Path) -> None:
    """Write NAME.svg and NAME.png, panels side by side on one scale."""
    with mpl.rc_context(SETTINGS):
        number = len(outcome.panels)
        figure = Figure(figsize=(WIDTH_INCHES * number, HEIGHT_INCHES), layout="constrained")
        axes = figure.subplots(1, number, squeeze=False, sharey=True)[0]
        for panel, place in zip(outcome.panels, axes, strict=True):
            _fill(place, panel)
        axes[0].set_ylabel(outcome.panels[0].y_label)
        figure.suptitle(outcome.title)
        figure.savefig(folder / f"{outcome.name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{outcome.name}.png", dpi=120)


def _fill(place: mpl.axes.Axes, panel: Panel) -> None:
    few = max(len(line.x) for line in panel.lines) < 30
    for line in panel.lines:
        (drawn,) = place.plot(
            line.x, line.y, label=line.label, linewidth=1.0, marker="." if few else ""
        )
        if line.planned is not None:
            place.axhline(line.planned, color=drawn.get_color(), linestyle=":", linewidth=0.8)
    if panel.logarithmic:
        place.set_xscale("log")
        place.set_yscale("log")
    else:
        place.set_ylim(bottom=0)
    place.set_title(panel.title)
    place.set_xlabel(panel.x_label)
    place.grid(alpha=0.3)
    place.legend()
