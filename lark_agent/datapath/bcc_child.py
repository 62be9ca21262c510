"""Compile job.bpf.c on this worker with bcc, and pin its programs. Run as a program of its own.

    bcc_child.py SOURCE MAPS OUT
    bcc_child.py --check            only tell whether bcc and the kernel headers are there

MAPS is a directory with the pinned maps, OUT one for the pins of the programs, both in a bpffs.

It is a child because bcc brings 130 MB of LLVM, which leave with it, and because it belongs to the
distribution's Python: it imports nothing of lark_agent. Exit status 3 says that bcc or the kernel
headers are missing (the last line of stderr says which), 1 that compilation or load failed.
"""

import os
import sys

PROGRAMS = (b"from_job", b"to_job")
LACKING = 3


def check() -> int:
    """Return 0 if everything is there."""
    try:
        import bcc  # noqa: F401, PLC0415  its absence is one of the answers
    except ImportError as error:
        sys.stderr.write(f"{sys.executable} cannot import bcc ({error}); install python3-bpfcc\n")
        return LACKING
    release = os.uname().release
    if not any(os.path.isdir(place) for place in header_places(release)):  # noqa: PTH112  as bcc looks
        sys.stderr.write(
            f"bcc needs the headers of Linux {release}; install linux-headers-{release}\n"
        )
        return LACKING
    return 0


def build(source: str, maps: str, out: str) -> int:
    """Compile, load, pin."""
    from bcc import BPF, lib  # noqa: PLC0415  after the check

    flags = ["-DLARK_BCC", f'-DLARK_PINS="{maps}"', "-Wno-unused-value"]
    try:
        module = BPF(text=whole(source), cflags=flags)
        for name in PROGRAMS:
            program = module.load_func(name, BPF.SCHED_CLS)
            path = os.path.join(os.fsencode(out), name)  # noqa: PTH118  bcc wants bytes
            if lib.bpf_obj_pin(program.fd, path) != 0:
                sys.stderr.write(f"cannot pin {os.fsdecode(path)}\n")
                return 1
    except Exception as error:  # noqa: BLE001  bcc raises bare Exception; its reasons are on stderr already
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def whole(source: str) -> str:
    """Return the source with its headers put in: bcc rewrites map access in one file only.

    Each is put in where it is first named; its include guard does the rest.
    """
    directory = os.path.dirname(source)  # noqa: PTH120  as above: no pathlib for strings of bcc
    with open(source, encoding="utf-8") as opened:  # noqa: PTH123  as above
        lines = opened.read().splitlines()
    found = []
    for line in lines:
        included = line.removeprefix('#include "').removesuffix('"')
        found.append(whole(os.path.join(directory, included)) if included != line else line)  # noqa: PTH118  as above
    return "\n".join(found)


def header_places(release: str) -> list[str]:
    """Return where bcc finds kernel headers."""
    given = os.environ.get("BCC_KERNEL_SOURCE")
    modules = f"/lib/modules/{release}"
    return [given] if given else [f"{modules}/build", f"{modules}/source"]


if __name__ == "__main__":
    sys.exit(check() or (0 if sys.argv[1:] == ["--check"] else build(*sys.argv[1:])))
