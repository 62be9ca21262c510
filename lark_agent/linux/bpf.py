"""Maps and pins of the BPF machine through the bpf(2) system call itself.

The kernel offers one system call with a command and a union of structures (linux/bpf.h). Only a
handful of commands are needed to create, pin, find, read and write maps, so they are packed here
by hand: no library has to be loaded to read a counter, and one call reads many entries
(`Map.read_range`, BPF_MAP_LOOKUP_BATCH). Programs need an ELF linker first; that is
`lark_agent.linux.libbpf`.

Keys and values are bytes: what they mean is their owner's business. An entry of a per-CPU map has
one value per *possible* CPU, not per CPU that is online, each padded to 8 bytes; the kernel writes
that much through the pointer it gets. So buffers are sized from the kernel's own word about the
map (BPF_OBJ_GET_INFO_BY_FD), never from what a caller believes.

Every refusal is a `BpfError` that names the command and its object. Privilege: CAP_BPF, before
Linux 5.8 CAP_SYS_ADMIN, for everything here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lark_agent.errors import KernelError, PrerequisiteError

if TYPE_CHECKING:
    from collections.abc import Iterator

BPFFS_MAGIC = 0xCAFE4A11
"""File system type of bpffs (linux/magic.h)."""

NO_PREALLOC = 1
"""Map flag: entries are allocated as they come (tries demand it)."""

_SYSCALLS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_ENOTSUPP = 524  # the kernel's own; not in errno
_LIBC = ctypes.CDLL(None, use_errno=True)


class Command(IntEnum):
    """Commands of bpf(2)."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_ATTACH = 8
    PROG_GET_FD_BY_ID = 13
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    MAP_LOOKUP_BATCH = 24


class MapKind(IntEnum):
    """Kinds of maps."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    RINGBUF = 27


@dataclass(frozen=True, slots=True)
class MapSpec:
    """What a map is made of."""

    kind: MapKind
    key_size: int
    value_size: int
    """Bytes of one value: in a per-CPU map, of one CPU's."""
    max_entries: int
    flags: int = 0


class BpfError(KernelError):
    """The kernel refused a BPF command; `number` is its errno."""

    def __init__(self, tried: str, number: int) -> None:
        remedy = {
            errno.EPERM: "run as root; if you are, see /sys/kernel/security/lockdown, and before "
            "Linux 5.11 `ulimit -l` (maps count as locked memory)",
            errno.ENOSYS: "this kernel is built without CONFIG_BPF_SYSCALL",
            errno.ENOMEM: "fewer slots (pool.slots) need less memory",
        }.get(number, "")
        super().__init__(tried, f"{os.strerror(number)} (errno {number})", remedy)
        self.number = number


def bpf(command: int, attributes: bytearray, tried: str) -> int:
    """Do one command. The kernel reads and may write `attributes`, and takes a shorter one as 0."""
    result: int = _LIBC.syscall(
        _syscall_number(),
        ctypes.c_int(command),
        ctypes.c_void_p(address_of(attributes)),
        len(attributes),
    )
    if result < 0:
        raise BpfError(tried, ctypes.get_errno())
    return result


def address_of(buffer: bytes | bytearray) -> int:
    """Return where a buffer lies; the caller keeps it alive and does not resize it."""
    if isinstance(buffer, bytearray):
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    return ctypes.cast(ctypes.c_char_p(buffer), ctypes.c_void_p).value or 0


class Map:
    """An open map. Closed by `close()` or `with`."""

    def __init__(self, fd: int, name: str) -> None:
        """Take over the descriptor `fd`; `name` is for error messages."""
        self.fd = fd
        self.name = name
        self.spec = _spec_of(fd, name)
        self.copies = 1
        """Values in one entry: one per possible CPU in a per-CPU map."""
        self.stride = self.spec.value_size
        """Bytes from one copy to the next."""
        if self.spec.kind is MapKind.PERCPU_ARRAY:
            self.copies = possible_cpus()
            self.stride = (self.spec.value_size + 7) & ~7
        self.entry_size = self.copies * self.stride
        self.batches = True
        """Whether this kernel reads this kind of map in batches; known after the first read."""

    @classmethod
    def create(cls, name: str, spec: MapSpec, inner: Map | None = None) -> Self:
        """Make an empty map; `inner` shows what the elements of a map of maps are."""
        attributes = struct.pack(
            "=7I16s",
            *(spec.kind, spec.key_size, spec.value_size, spec.max_entries, spec.flags),
            *(inner.fd if inner else 0, 0, name.encode()[:15]),
        )
        return cls(bpf(Command.MAP_CREATE, bytearray(attributes), f"create {name} {spec}"), name)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a pinned map."""
        return cls(open_pin(path), path.name)

    def get(self, key: bytes) -> bytes | None:
        """Return the entry of `key` (every CPU's value in a per-CPU map), None if there is none."""
        value = bytearray(self.entry_size)
        if self._element(Command.MAP_LOOKUP_ELEM, key, value):
            return bytes(value)
        return None

    def set(self, key: bytes, value: bytes) -> None:
        """Write one entry (every CPU's value in a per-CPU map)."""
        if len(value) != self.entry_size:
            raise ValueError(f"{self.name}: {len(value)} bytes for entries of {self.entry_size}")
        if not self._element(Command.MAP_UPDATE_ELEM, key, value):
            raise BpfError(f"set {key.hex()} in map {self.name}", errno.ENOENT)

    def delete(self, key: bytes) -> bool:
        """Remove one entry; False if there was none."""
        return self._element(Command.MAP_DELETE_ELEM, key, None)

    def keys(self) -> Iterator[bytes]:
        """Yield every key; one that comes or goes meanwhile may be missed or make it start over."""
        key: bytes | None = None
        following = bytearray(self.spec.key_size)
        while self._element(Command.MAP_GET_NEXT_KEY, key, following):
            key = bytes(following)
            yield key

    def read_range(self, first: int, count: int) -> memoryview:
        """Return `count` consecutive entries of an array in one system call.

        Kernels before 5.13 read no per-CPU arrays in batches; there it is one call an entry.
        """
        values = bytearray(self.entry_size * count)
        if self.batches and self._read_batch(first, count, values):
            return memoryview(values)
        for number in range(count):
            entry = self.get(struct.pack("=I", first + number))
            if entry is None:
                raise BpfError(f"read entry {first + number} of map {self.name}", errno.ENOENT)
            values[number * self.entry_size : (number + 1) * self.entry_size] = entry
        return memoryview(values)

    def close(self) -> None:
        """Close the descriptor; a map that is pinned or in a program lives on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _element(
        self, command: Command, key: bytes | None, value: bytes | bytearray | None
    ) -> bool:
        """Do one of the commands on elements; False says that there is no such element."""
        if key is not None and len(key) != self.spec.key_size:
            raise ValueError(f"{self.name}: a key has {self.spec.key_size} bytes, not {len(key)}")
        attributes = struct.pack(
            "=IIQQQ",
            *(self.fd, 0, address_of(key) if key is not None else 0),
            *(address_of(value) if value is not None else 0, 0),
        )
        tried = f"{command.name} {key.hex() if key else ''} in map {self.name}"
        try:
            bpf(command, bytearray(attributes), tried)
        except BpfError as error:
            if error.number == errno.ENOENT:
                return False
            raise
        return True

    def _read_batch(self, first: int, count: int, values: bytearray) -> bool:
        """Fill `values`; False if this kernel cannot."""
        keys, after = bytearray(4 * count), bytearray(4)
        cursor = struct.pack("=I", max(first - 1, 0))  # the index before the first wanted
        attributes = bytearray(
            struct.pack(
                "=QQQQIIQQ",
                *(address_of(cursor) if first else 0, address_of(after)),
                *(address_of(keys), address_of(values), count, self.fd, 0, 0),
            )
        )
        try:
            bpf(Command.MAP_LOOKUP_BATCH, attributes, f"read map {self.name}")
        except BpfError as error:
            if error.number in {errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP}:
                self.batches = False
                return False
            if error.number != errno.ENOENT:  # which says only that the array ends here
                raise
        (done,) = struct.unpack_from("=I", attributes, 32)
        if done != count:
            raise BpfError(f"read {count} entries from {first} of map {self.name}", errno.ENOENT)
        return True


def pin(fd: int, path: Path) -> None:
    """Name a map or program in a bpffs, so that it outlives this process."""
    name = os.fsencode(path) + b"\0"
    attributes = struct.pack("=QII", address_of(name), fd, 0)
    bpf(Command.OBJ_PIN, bytearray(attributes), f"pin {path}")


def open_pin(path: Path) -> int:
    """Return a descriptor of the pinned map or program; the caller closes it."""
    name = os.fsencode(path) + b"\0"
    attributes = struct.pack("=QII", address_of(name), 0, 0)
    return bpf(Command.OBJ_GET, bytearray(attributes), f"open pin {path}")


def is_bpffs(path: Path) -> bool:
    """Tell whether an existing path lies in a bpffs."""
    # struct statfs is at most 120 bytes on 64-bit machines and starts with the type, a long
    buffer = bytearray(512)
    if _LIBC.statfs(os.fsencode(path), ctypes.c_void_p(address_of(buffer))) != 0:
        number = ctypes.get_errno()
        raise KernelError(f"statfs {path}", os.strerror(number))
    size = 4 if platform.machine() == "s390x" else 8
    return int.from_bytes(buffer[:size], sys.byteorder) == BPFFS_MAGIC


@cache
def possible_cpus() -> int:
    """Return how many CPUs this kernel is prepared for (kernel ABI: sysfs-devices-system-cpu)."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
    last = text.rpartition(",")[2].rpartition("-")[2]
    return int(last) + 1


@cache
def _syscall_number() -> int:
    machine = platform.machine()
    if machine not in _SYSCALLS:
        raise PrerequisiteError(f"bpf(2) has no known number on {machine}; add it to {__file__}")
    return _SYSCALLS[machine]


def _spec_of(fd: int, name: str) -> MapSpec:
    info = bytearray(24)  # type, id, key size, value size, entries, flags
    attributes = bytearray(struct.pack("=IIQ", fd, len(info), address_of(info)))
    bpf(Command.OBJ_GET_INFO_BY_FD, attributes, f"describe map {name}")
    kind, _, key_size, value_size, entries, flags = struct.unpack("=6I", info)
    return MapSpec(MapKind(kind), key_size, value_size, entries, flags)
