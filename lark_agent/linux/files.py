"""Small files that are whole or not there, whatever kills the writer."""

from __future__ import annotations

import os
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


def write_secret(path: Path, content: bytes) -> None:
    """Give a file that its owner alone reads this content by a rename, durably.

    What root writes belongs to the directory's owner. Raises OSError.
    """
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        give(handle, path.parent)
        file.write(content)
        file.flush()
        os.fsync(handle)
    fresh.replace(path)


def give(handle: int, directory: Path) -> None:
    """Give what root made in a directory to whose directory it is."""
    owner = directory.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.chown(handle, owner.st_uid, owner.st_gid)
