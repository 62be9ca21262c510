"""Give back memory that only the start needed.

Starting maps libraries in large pieces: where the page cache holds a file in big folios, one fault
maps many neighbouring pages, and most of that code (initialisers, protocols never spoken) is not
used again. Dropping the mappings of code is safe at any time: it is never written, and what is
needed comes back from the page cache at the next call, page by page.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

_MADV_DONTNEED = 4
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def release_code() -> None:
    """Unmap the pages of all file-backed code of this process; they return when they are used."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1] == "r-xp" and fields[5].startswith("/"):
            start, end = (int(number, 16) for number in fields[0].split("-"))
            _LIBC.madvise(start, end - start, _MADV_DONTNEED)  # a refusal changes nothing
