"""Build steps that setuptools does not know: eBPF object, native wrapper, rpc code.

Everything is built from the tree by `pip install .` (and in place by `pip install -e .` or
`python setup.py build_native`), so that an installed package runs without compilers:

* ``lark_agent/datapath/{job,host,host-networks}.bpf.o`` by ``clang -target bpf``; only UAPI headers
  are needed;
* ``lark_agent/hooks/native/environment.h`` from the tables of ``lark_agent.schedulers``;
* ``lark_agent/hooks/native/bin/lark-run``, ``lark-enter``, ``lark-prepare``, ``lark-beside``,
  ``lark-sshd-setup`` by the C compiler, hardened; beside them ``spank_lark.so``, where Slurm's
  headers are (it fits that release only);
* ``lark_agent/rpc/lark/v1/*_pb2*.py`` by protoc from ``protos/``.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "lark_agent"

WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
HARDENING = [
    "-std=gnu17", "-O2", "-fstack-protector-strong", "-fstack-clash-protection", "-fcf-protection",
    "-D_FORTIFY_SOURCE=2", "-fPIE",
]  # fmt: skip
LINKING = ["-Wl,-z,relro,-z,now,-z,noexecstack", "-s"]
# Static, because the wrapper's start is on every job's critical path and must not depend on the
# job's library path. With musl where it is installed: glibc asks CPUID some twenty times at every
# start, which costs 0.35 ms an exec on a virtual machine.
MUSL = Path("/usr/lib") / f"{platform.machine()}-linux-musl"


SPANK_HEADER = Path("/usr/include/slurm/spank.h")


class BuildNative(Command):
    """Compile what is not Python into the package directory."""

    description = "compile the eBPF object, the wrapper and the rpc code"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []
    editable_mode = False

    def initialize_options(self) -> None:
        """Have no options."""
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        """Take the build directory from `build`."""
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        """Build into the source tree, then copy into the wheel unless the install is editable."""
        built = [*build_bpf(), *build_wrapper(), *build_spank(), *build_rpc()]
        if not self.editable_mode and self.build_lib:
            for path in built:
                target = Path(self.build_lib) / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)

    def get_outputs(self) -> list[str]:
        """List nothing: the copies are package data."""
        return []

    def get_output_mapping(self) -> dict[str, str]:
        """Map nothing: see get_outputs."""
        return {}

    def get_source_files(self) -> list[str]:
        """Name what must be in a source distribution."""
        patterns = ("datapath/*.c", "datapath/*.h", "hooks/native/*.c", "hooks/native/*.h")
        native = [str(p.relative_to(ROOT)) for pattern in patterns for p in PACKAGE.glob(pattern)]
        return native + [str(p.relative_to(ROOT)) for p in (ROOT / "protos").rglob("*.proto")]


def build_bpf() -> list[Path]:
    """Compile the datapath's three objects."""
    built = []
    for name, more in (("job", []), ("host", []), ("host", ["-DLARK_NETWORKS"])):
        source = PACKAGE / "datapath" / f"{name}.bpf.c"
        target = source.with_name(f"{name}{'-networks' if more else ''}.bpf.o")
        compile_bpf(source, target, *more)
        built.append(target)
    return built


def compile_bpf(source: Path, target: Path, *more: str) -> None:
    """Compile for the BPF machine; debug information carries the map types (BTF)."""
    clang = os.environ.get("CLANG", "clang")
    # clang leaves the multiarch directory out for a foreign target
    options = ["-O2", "-g", f"-ffile-prefix-map={ROOT}=.", "-Wall", "-Wextra", "-Werror"]
    flags = [*options, *more, f"-I{multiarch()}"]
    run(clang, "-target", "bpf", *flags, "-c", source, "-o", target)


def write_environment(header: Path) -> None:
    """Write the names of the variables that lark-run sends, as the batch systems' tables say."""
    sys.path.insert(0, str(ROOT))  # absent from an isolated build's; the package is not installed
    from lark_agent.schedulers import ENVIRONMENT  # noqa: PLC0415  needs the line above

    names = ", \\\n\t".join(f'"{name}"' for name in ENVIRONMENT)
    header.write_text(
        "/* Variables that name a job: from the tables of lark_agent/schedulers, by setup.py. */\n"
        f"#pragma once\n#define NAMING_ENVIRONMENT \\\n\t{names}\n"
    )


def build_wrapper() -> list[Path]:
    """Compile lark-run, lark-enter (which gets the file capability), and HTCondor's programs."""
    native = PACKAGE / "hooks" / "native"
    write_environment(native / "environment.h")
    (native / "bin").mkdir(exist_ok=True)
    compiler, before, after = wrapper_compiler()
    analyzer = analyzer_of(compiler)
    built = []
    for name in (
        "lark-run", "lark-enter", "lark-prepare", "lark-beside", "lark-sshd-setup", "lark-starter",
    ):  # fmt: skip
        target, source = native / "bin" / name, native / f"{name}.c"
        flags = [*WARNINGS, *analyzer, *HARDENING]
        run(compiler, *flags, *before, source, *after, *LINKING, "-o", target)
        built.append(target)
    return built


def build_spank() -> list[Path]:
    """Compile Slurm's plugin; nothing without Slurm's headers, for which other sites have no use.

    It is loaded into Slurm's own programs, so it is built as they are: shared, against their libc.
    """
    native = PACKAGE / "hooks" / "native"
    if not SPANK_HEADER.exists():
        return []
    target, source = native / "bin" / "spank_lark.so", native / "spank_lark.c"
    target.parent.mkdir(exist_ok=True)
    hardening = [flag for flag in HARDENING if flag != "-fPIE"]
    compiler = os.environ.get("CC", "cc")
    flags = [*WARNINGS, *analyzer_of(compiler), *hardening, "-fPIC", "-shared"]
    run(compiler, *flags, "-fvisibility=hidden", source, *LINKING, "-o", target)
    return [target]


def analyzer_of(compiler: str) -> list[str]:
    """Return the option that has gcc look for leaks and the like; clang has none."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return [] if "clang" in version.stdout else ["-fanalyzer"]


def wrapper_compiler() -> tuple[str, list[object], list[object]]:
    """Return the compiler, and what stands before and after the source, for a static PIE."""
    start = MUSL / "rcrt1.o"
    if "CC" in os.environ or not shutil.which("musl-gcc") or not start.exists():
        return os.environ.get("CC", "cc"), [], ["-static-pie"]
    # musl-gcc's own specs link a static PIE as a dynamic one; the kernel's headers come last
    headers = [f"-idirafter{path}" for path in ("/usr/include", multiarch())]
    link = ["-static", "-nostartfiles", "-Wl,-pie,--no-dynamic-linker,-z,text"]
    return "musl-gcc", [*headers, *link, start, MUSL / "crti.o"], [MUSL / "crtn.o"]


def multiarch() -> str:
    """Return where the kernel's headers for this architecture are (asm/types.h)."""
    return f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}"


def build_rpc() -> list[Path]:
    """Generate messages, services and their types; anchor the imports below lark_agent.rpc."""
    import grpc_tools  # noqa: PLC0415  a build requirement, absent when setup.py is only queried
    from grpc_tools import protoc  # noqa: PLC0415  as above

    rpc = PACKAGE / "rpc"
    protos = sorted((ROOT / "protos").rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{ROOT / 'protos'}", f"-I{well_known}", f"--python_out={rpc}",
                 f"--grpc_python_out={rpc}", f"--mypy_out=quiet:{rpc}",
                 f"--mypy_grpc_out=quiet:{rpc}"]  # fmt: skip
    if protoc.main([*arguments, *map(str, protos)]) != 0:
        raise SystemExit("protoc failed on protos/")
    for folder in (rpc / "lark", rpc / "lark" / "v1"):
        (folder / "__init__.py").write_text('"""Generated from protos/ by setup.py."""\n')
    built = sorted((rpc / "lark").rglob("*.py*"))
    for path in (p for p in built if p.suffix in {".py", ".pyi"}):
        text = path.read_text()
        text = re.sub(
            r"^from lark\.v1 import", "from lark_agent.rpc.lark.v1 import", text, flags=re.MULTILINE
        )
        text = re.sub(
            r"^import lark\.v1\.(\w+)$",
            r"import lark_agent.rpc.lark.v1.\1",
            text,
            flags=re.MULTILINE,
        )
        text = re.sub(r"(?<![\w.])lark\.v1\.(\w+_pb2)", r"lark_agent.rpc.lark.v1.\1", text)
        path.write_text(text)
    return [p for p in built if p.suffix in {".py", ".pyi"}]


def run(*command: object) -> None:
    """Run a compiler, showing its command line when it fails."""
    words = [str(word) for word in command]
    try:
        subprocess.run(words, check=True)
    except FileNotFoundError as error:
        raise SystemExit(f"cannot build: {words[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"build failed: {' '.join(words)}") from error


build.sub_commands = [*build.sub_commands, ("build_native", None)]
if __name__ == "__main__":  # tests compile with the same flags
    setup(cmdclass={"build_native": BuildNative})
