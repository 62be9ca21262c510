"""Tables that fit: the least important columns go before anything is cut.

A job id that lost its middle cannot be copied into `lark job`, so a table narrower than its
content leaves out whole columns, the least important first, and says which; only when one column
is left too wide is it folded over lines. Output that is not a terminal has no width: nothing is
left out of what goes into a pipe.

On a terminal rich draws. Cells are rich `Text`, never strings, because rich reads "[red]" in a
string as markup and job ids are the user's words; `visible` disarms control characters. Into a
pipe the lines are written directly: rich takes 1.6 ms a row, which a long list would feel.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lark_agent.cli.units import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import Console, Group, RenderableType

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


@dataclass(frozen=True, slots=True)
class Grid:
    """A table for a width in cells; `total` stands at the end."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    width: int
    total: Sequence[str] = ()

    def lines(self) -> Iterator[str]:
        """Write the table as plain text; nothing is folded."""
        widths = self._natural()
        chosen, caption = self._fit(widths)
        if any(column.title for column in self.columns):
            yield self._line([column.title for column in self.columns], chosen, widths)
        for row in (*self.rows, *([self.total] if self.total else [])):
            yield self._line([visible(cell) for cell in row], chosen, widths)
        if caption:
            yield caption

    def __rich__(self) -> Group:
        """Draw the table with the columns that fit, folding what is still too wide."""
        from rich.console import Group  # noqa: PLC0415  50 ms that --help must not pay
        from rich.table import Table  # noqa: PLC0415  as above
        from rich.text import Text  # noqa: PLC0415  as above

        chosen, caption = self._fit(self._natural())
        drawn = Table(
            box=None,
            padding=(0, GAP, 0, 0),
            pad_edge=False,
            header_style="bold",
            show_header=any(column.title for column in self.columns),
        )
        for i in chosen:
            column = self.columns[i]
            fixed = column.spare > 0 or column.justify == "right"
            drawn.add_column(
                Text(column.title), justify=column.justify, no_wrap=fixed, overflow="fold"
            )
        for row in self.rows:
            drawn.add_row(*(Text(visible(row[i])) for i in chosen))
        if self.total:
            drawn.add_row(*(Text(visible(self.total[i]), style="bold") for i in chosen))
        # not rich's own caption, which is folded to the width of the table
        return Group(drawn, Text(caption, style="dim")) if caption else Group(drawn)

    def _natural(self) -> list[int]:
        """Measure the widest cell of each column."""
        from rich.cells import cell_len  # noqa: PLC0415  as above

        every = (*self.rows, *([self.total] if self.total else []))
        return [
            max([cell_len(column.title), *(cell_len(visible(row[i])) for row in every)])
            for i, column in enumerate(self.columns)
        ]

    def _fit(self, widths: Sequence[int]) -> tuple[list[int], str | None]:
        """Choose the columns that fit, and say which are left out."""
        chosen = list(range(len(widths)))
        left_out = []
        for i in sorted(chosen, key=lambda i: -self.columns[i].spare):
            too_wide = sum(widths[j] + GAP for j in chosen) - GAP > self.width
            if self.columns[i].spare == 0 or not too_wide:
                break
            chosen.remove(i)
            left_out.append(i)
        titles = ", ".join(self.columns[i].title for i in sorted(left_out))
        return chosen, f"left out at this width: {titles}" if titles else None

    def _line(self, cells: Sequence[str], chosen: Sequence[int], widths: Sequence[int]) -> str:
        from rich.cells import cell_len  # noqa: PLC0415  as above

        padded = []
        for i in chosen:
            blanks = " " * (widths[i] - cell_len(cells[i]))
            left = self.columns[i].justify == "left"
            padded.append(cells[i] + blanks if left else blanks + cells[i])
        return (" " * GAP).join(padded).rstrip()


def draw(parts: Iterable[RenderableType]) -> None:
    """Print what a view made: strings, grids and, for a view that is never long, rich's own."""
    screen = console()
    for part in parts:
        if screen.is_terminal:
            screen.print(part)
        elif isinstance(part, str):
            print(part)  # noqa: T201  the output of the command
        elif isinstance(part, Grid):
            print("\n".join(part.lines()))  # noqa: T201  as above
        else:
            with screen.capture() as drawn:
                screen.print(part)
            # the blanks that fill a table up are for eyes only
            print("\n".join(line.rstrip() for line in drawn.get().splitlines()))  # noqa: T201  as above
