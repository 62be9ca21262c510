"""A virtual machine that starts a kernel of ours directly, and tells lines of JSON to its end.

No boot loader and no network: the kernel and its initial file system are qemu's arguments, the
root is a disk whose changes are forgotten, and one port (`/dev/virtio-ports/lark.told` inside)
carries what the machine has to tell. What the console says is kept in a file.

KVM is used where `/dev/kvm` is, unless LARK_DRIVER=qemu asks for software emulation.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from tests.machines.kernels import Kernel

PORT = "lark.told"
_STARTING = 20
_SILENCE = 900
"""Seconds without a word after which a machine is taken for dead."""


class GuestError(Exception):
    """The machine did not start, or fell silent."""


def driver() -> str:
    """Return qemu's accelerator: "kvm", or "tcg" (software emulation)."""
    asked = os.environ.get("LARK_DRIVER", "kvm" if Path("/dev/kvm").exists() else "qemu")
    if asked not in ("kvm", "qemu"):
        raise GuestError(f"LARK_DRIVER is {asked!r}: must be kvm or qemu (software emulation)")
    return "kvm" if asked == "kvm" else "tcg"


class Guest:
    """A running machine; `with` ends it, whatever it does."""

    def __init__(
        self, kernel: Kernel, disks: Sequence[Path], directory: Path, *,
        arguments: str = "", megabytes: int = 1536,
    ) -> None:  # fmt: skip
        directory.mkdir(parents=True, exist_ok=True)
        self.console = directory / "console.log"
        port = directory / "told"
        port.unlink(missing_ok=True)
        line = f"root=/dev/vda rw console=ttyS0 panic=-1 net.ifnames=0 {arguments}"
        drives = [f"file={disk},if=virtio,format=raw,snapshot=on" for disk in disks]
        command = [
            "qemu-system-x86_64", "-accel", driver(), "-cpu", "max", "-machine", "q35",
            "-m", str(megabytes), "-smp", "1", "-display", "none", "-no-reboot", "-nic", "none",
            "-kernel", str(kernel.image), "-initrd", str(kernel.initial), "-append", line,
            "-serial", f"file:{self.console}", "-monitor", "none", "-device", "virtio-rng-pci",
            "-chardev", f"socket,id=told,path={port},server=on,wait=on",
            "-device", "virtio-serial", "-device", f"virtserialport,chardev=told,name={PORT}",
            *(word for drive in drives for word in ("-drive", drive)),
        ]  # fmt: skip
        self._errors = (directory / "qemu.log").open("w+")
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors
        )
        try:
            self._port = self._connect(port)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def _connect(self, path: Path) -> socket.socket:
        """Take the other end of the machine's port; qemu starts the machine when we do."""
        port = socket.socket(socket.AF_UNIX)
        for _ in range(_STARTING * 10):
            with contextlib.suppress(OSError):
                port.connect(str(path))
                return port
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)
                break
        self._errors.seek(0)
        raise GuestError(f"qemu did not start: {self._errors.read() or 'it says nothing'}")

    def told(self) -> Iterator[dict[str, Any]]:
        """Give what the machine tells until it ends; raises GuestError if it falls silent."""
        self._port.settimeout(_SILENCE)
        with self._port.makefile(encoding="utf-8", errors="replace") as lines:
            try:
                yield from (json.loads(line) for line in lines if line.strip())
            except TimeoutError as error:
                raise GuestError(
                    f"the machine said nothing for {_SILENCE} s; its console: {self.console}; "
                    "if that is empty, KVM does not work here: LARK_DRIVER=qemu does without"
                ) from error
        with contextlib.suppress(subprocess.TimeoutExpired):  # it is ended in any case
            self._process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._process.kill()
        self._process.wait()
        self._port.close()
        self._errors.close()
