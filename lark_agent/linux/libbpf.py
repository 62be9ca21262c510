"""Load the programs of an ELF object through the system's libbpf, by ctypes.

libbpf is the linker between an object that clang made and the kernel: it relocates map references,
describes types and loads. Only that is taken from it. The maps are handed in as descriptors
(`bpf_map__reuse_fd`), so the object's own idea of their sizes does not matter, and what comes back
is plain descriptors; the library keeps nothing.

Both sonames work: 1.x, and 0.5 and later (EL8, EL9.0), where errors may be encoded in pointers.
What libbpf prints, above all the verifier's reasons, is caught and becomes part of the error.
The print callback is process-wide, so loads are serialized.

Privilege: CAP_BPF and CAP_NET_ADMIN (before Linux 5.8 CAP_SYS_ADMIN) to load tc programs.
"""

from __future__ import annotations

import ctypes
import os
from threading import Lock
from typing import TYPE_CHECKING

from lark_agent.errors import KernelError, PrerequisiteError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_SONAMES = ("libbpf.so.1", "libbpf.so.0")
_STRICT_ALL = 0xFFFFFFFF
_HIGHEST_ERROR = 4095  # pointers above -4095 are error numbers (linux/err.h)
_LOG_TAIL = 4000
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_WARNING = 0
_LOADING = Lock()


def load_programs(path: Path, maps: Mapping[str, int], programs: Sequence[str]) -> dict[str, int]:
    """Load an object with these maps (name → descriptor); return name → program descriptor.

    The caller closes the descriptors. Raises PrerequisiteError without libbpf, KernelError with
    libbpf's own words if the object cannot be opened or the kernel does not accept it.
    """
    library = _library()
    with _LOADING:
        words: list[str] = []
        callback = _PRINT(_catch_into(words))
        library.libbpf_set_print.restype = ctypes.c_void_p
        before = library.libbpf_set_print(callback)
        try:
            return _load(library, path, maps, programs)
        except _LibbpfError as error:
            log = "".join(words)[-_LOG_TAIL:].strip()
            raise KernelError(
                f"load {path}", f"{error}\n{log}".strip(), "see `lark doctor` for kernel features"
            ) from error
        finally:
            library.libbpf_set_print(ctypes.cast(before, _PRINT) if before else None)


def version() -> str:
    """Return the name and version of the library; raises PrerequisiteError if there is none."""
    library = _library()
    if not hasattr(library, "libbpf_version_string"):
        return "libbpf before 0.6"
    library.libbpf_version_string.restype = ctypes.c_char_p
    return f"libbpf {library.libbpf_version_string().decode()}"


class _LibbpfError(Exception):
    """A libbpf function failed."""


def _library() -> ctypes.CDLL:
    for name in _SONAMES:
        try:
            library = ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
        pointer = ctypes.c_void_p
        library.bpf_object__open_file.restype = pointer
        library.bpf_object__open_file.argtypes = [ctypes.c_char_p, pointer]
        library.bpf_object__load.argtypes = [pointer]
        library.bpf_object__close.argtypes = [pointer]
        for find in ("bpf_object__find_map_by_name", "bpf_object__find_program_by_name"):
            getattr(library, find).restype = pointer
            getattr(library, find).argtypes = [pointer, ctypes.c_char_p]
        library.bpf_map__reuse_fd.argtypes = [pointer, ctypes.c_int]
        library.bpf_program__fd.argtypes = [pointer]
        if hasattr(library, "libbpf_set_strict_mode"):  # 0.6 to 0.8 behave as 1.x then
            library.libbpf_set_strict_mode(ctypes.c_uint(_STRICT_ALL))
        return library
    raise PrerequisiteError(
        f"no {' or '.join(_SONAMES)} on this machine; install libbpf1 (Debian) or libbpf (EL), "
        'or set datapath.loader = "bcc"'
    )


def _load(
    library: ctypes.CDLL, path: Path, maps: Mapping[str, int], programs: Sequence[str]
) -> dict[str, int]:
    handle = _pointer(library.bpf_object__open_file(os.fsencode(path), None), f"open {path}")
    try:
        for name, fd in maps.items():
            found = library.bpf_object__find_map_by_name(handle, name.encode())
            _number(library.bpf_map__reuse_fd(_pointer(found, f"map {name}"), fd), f"map {name}")
        _number(library.bpf_object__load(handle), "the kernel's verdict")
        loaded: dict[str, int] = {}
        for name in programs:
            found = library.bpf_object__find_program_by_name(handle, name.encode())
            fd = library.bpf_program__fd(_pointer(found, f"program {name}"))
            # the object's own descriptors are closed with it
            loaded[name] = os.dup(_number(fd, f"program {name}"))
        return loaded
    finally:
        library.bpf_object__close(handle)


def _pointer(value: int | None, what: str) -> int:
    if value is None:
        raise _LibbpfError(f"{what}: {os.strerror(ctypes.get_errno())}")
    number = 2**64 - value
    if number <= _HIGHEST_ERROR:
        raise _LibbpfError(f"{what}: {os.strerror(number)}")
    return value


def _number(value: int, what: str) -> int:
    if value < 0:
        raise _LibbpfError(f"{what}: {os.strerror(-value)}")
    return value


def _catch_into(words: list[str]) -> Callable[[int, bytes, int], int]:
    """Return a libbpf_print_fn_t; its va_list is a pointer to whatever the C library made."""
    libc = ctypes.CDLL(None)
    libc.vsnprintf.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]

    def catch(level: int, form: bytes, arguments: int) -> int:
        if level <= _WARNING:
            text = ctypes.create_string_buffer(1 << 16)
            libc.vsnprintf(text, len(text), form, arguments)
            words.append(text.value.decode(errors="replace"))
        return 0

    return catch
