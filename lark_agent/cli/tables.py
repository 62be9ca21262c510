"""Tables that fit: the least important columns go before anything is cut.

A job id that lost its middle cannot be copied into `lark job`, so a table narrower than its
content leaves out whole columns, the least important first, and says which; only when one column
is left too wide is it folded over lines. Output that is not a terminal has no width: nothing is
left out of what goes into a pipe.

rich draws. Cells are rich `Text`, never strings, because rich reads "[red]" in a string as markup
and job ids are the user's words; `visible` disarms control characters.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lark_agent.cli.units import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console, RenderableType
    from rich.table import Table

GAP = 2
UNLIMITED = 100_000
"""Width of output that is not a terminal, in cells."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column; the higher its `spare`, the earlier it is left out (0: never)."""

    title: str
    spare: int = 0
    justify: Literal["left", "right"] = "left"


def console() -> Console:
    """Open standard output: as wide as the terminal, or without a bound if it is none.

    COLUMNS in the environment wins, as for other programs.
    """
    from rich.console import Console  # noqa: PLC0415  50 ms that --help must not pay

    wide = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else UNLIMITED
    return Console(width=wide, highlight=False, soft_wrap=False, emoji=False, markup=False)


def draw(parts: Iterable[RenderableType]) -> None:
    """Print what a view made; without the blanks that fill a table up where nobody sees a table."""
    screen = console()
    if screen.is_terminal:
        for part in parts:
            screen.print(part)
        return
    with screen.capture() as drawn:
        for part in parts:
            screen.print(part)
    for line in drawn.get().splitlines():
        print(line.rstrip())  # noqa: T201  the output of the command


def fit(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int
) -> tuple[list[int], list[str]]:
    """Choose the columns that fit; returns their indexes and the titles of those left out."""
    from rich.cells import cell_len  # noqa: PLC0415  as above

    natural = [
        max([cell_len(column.title), *(cell_len(visible(row[i])) for row in rows)])
        for i, column in enumerate(columns)
    ]
    chosen, left_out = list(range(len(columns))), []
    for i in sorted(chosen, key=lambda i: -columns[i].spare):
        if columns[i].spare == 0 or sum(natural[j] + GAP for j in chosen) - GAP <= width:
            break
        chosen.remove(i)
        left_out.append(i)
    return chosen, [columns[i].title for i in sorted(left_out)]


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    total: Sequence[str] | None = None,
) -> Table:
    """Make a rich table of the columns that fit in `width` cells; `total` stands at the end."""
    from rich.table import Table  # noqa: PLC0415  as above
    from rich.text import Text  # noqa: PLC0415  as above

    every = [*rows, total] if total else list(rows)
    chosen, left_out = fit(columns, every, width)
    drawn = Table(
        box=None,
        padding=(0, GAP, 0, 0),
        pad_edge=False,
        caption=f"left out at this width: {', '.join(left_out)}" if left_out else None,
        caption_justify="left",
        header_style="bold",
        show_header=any(column.title for column in columns),
    )
    for i in chosen:
        column = columns[i]
        fixed = column.spare > 0 or column.justify == "right"
        drawn.add_column(Text(column.title), justify=column.justify, no_wrap=fixed, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(visible(row[i])) for i in chosen))
    if total:
        drawn.add_row(*(Text(visible(total[i]), style="bold") for i in chosen))
    return drawn
