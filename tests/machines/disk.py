"""Disks of virtual machines, made from directories without mounting anything."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.machines.debian import run

if TYPE_CHECKING:
    from pathlib import Path

# what every kernel from 5.10 on can mount; the defaults of newer mke2fs are not
_FEATURES = """\
[defaults]
	base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
	inode_size = 256
[fs_types]
	ext4 = {
		features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
	}
"""


def filled(disk: Path, tree: Path, gigabytes: int, label: str) -> Path:
    """Make a disk that is one ext4 file system, with a tree in it; sparse until it is written."""
    settings = disk.with_suffix(".mke2fs")
    settings.write_text(_FEATURES)
    environment = {**os.environ, "MKE2FS_CONFIG": str(settings)}
    disk.unlink(missing_ok=True)
    run("mke2fs", "-q", "-t", "ext4", "-L", label, "-d", str(tree), str(disk), f"{gigabytes}G",
        environment=environment)  # fmt: skip
    settings.unlink()
    return disk
