"""Small files that are whole or not there, whatever kills the writer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Give a file this text by a rename; readers see the old one or the new one.

    Not for a file that is mounted somewhere: the mount keeps the old one. Raises OSError.
    """
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
