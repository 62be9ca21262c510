"""`lark-agent debug-bundle`: what a stranger needs to see of a worker, in one file, no secrets.

Each part is made on its own, in a bounded time and to a bounded size; one that cannot be made says
why in its place, so that a worker without an agent, or with half of one, can be told of as well.

No secret is in it, by what parts are made of and not by searching for words: settings are taken
as decoded, not the file, whose comments may say anything; of programs only their path is shown,
since arguments may be passwords, and of the machine's own attributes only the names; the
identity's file is not read. Records of jobs, with owners and addresses, are left out unless
`--with-records` asks for them; the log names job ids and owners.
"""

from __future__ import annotations

import io
import json
import os
import platform
import socket
import sqlite3
import subprocess
import sys
import tarfile
import time
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lark_agent.errors import LarkError, PrerequisiteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lark_agent.cli.doctor.probe import Probe
    from lark_agent.config import AgentSettings

PART_BYTES = 2_000_000
COMMAND_SECONDS = 20
LOG_LINES = 2000
COMMANDS = {
    "kernel/links.json": ("ip", "-json", "-details", "-statistics", "link"),
    "kernel/routes.json": ("ip", "-json", "route", "show", "table", "all"),
    "kernel/qdiscs.json": ("tc", "-json", "-statistics", "qdisc"),
    "kernel/nftables.txt": ("nft", "list", "table", "inet", "lark"),
    "kernel/memory.txt": ("cat", "/proc/meminfo", "/proc/pressure/memory"),
    "log.txt": ("journalctl", "--unit", "lark-agent", "--no-pager", "--lines", str(LOG_LINES)),
}
DEPENDENCIES = (
    "grpcio",
    "protobuf",
    "pyroute2",
    "msgspec",
    "structlog",
    "htcondor",
    "cryptography",
)
PROGRAMS = "(arguments left out)"


def write(probe: Probe, target: Path, *, with_records: bool) -> int:
    """Write the bundle for root alone; returns its size in bytes. Raises PrerequisiteError."""
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PrerequisiteError(f"cannot write {target}: {error.strerror}; name another") from error
    folder = target.name.partition(".")[0]
    with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, make in _parts(probe, with_records=with_records):
            text = _made(make).encode(errors="replace")[:PART_BYTES]
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime, entry.mode = len(text), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(text))
    return target.stat().st_size


def default_name() -> Path:
    """Return where a bundle goes if nobody says where: this host, this second."""
    second = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return Path(f"lark-debug-{socket.gethostname()}-{second}.tar.gz")


def _parts(probe: Probe, *, with_records: bool) -> Iterator[tuple[str, Callable[[], str]]]:
    from lark_agent.cli.doctor import report  # noqa: PLC0415  heavy: every door of the machine

    yield "versions.json", _versions
    yield "settings.json", lambda: _json(settings_shown(probe.settings))
    yield "configuration.txt", lambda: probe.problem or "good\n"
    yield "status.json", lambda: _status(probe)
    yield "doctor.json", lambda: report.as_json(report.examine(probe))
    yield "repairs.json", lambda: _repairs(probe.settings)
    yield "journal.json", lambda: _journal(probe.settings, with_records=with_records)
    yield "pins.txt", lambda: _listing(Path(probe.settings.paths.bpffs))
    yield "sandboxes.txt", lambda: _listing(Path("/run/netns"))
    for name, command in COMMANDS.items():
        yield name, lambda command=command: _said(command)  # type: ignore[misc]  # bound as default


def _made(make: Callable[[], str]) -> str:
    try:
        return make()
    except (LarkError, OSError, ValueError, sqlite3.Error, subprocess.SubprocessError) as error:
        return f"could not be made: {error}\n"


def settings_shown(settings: AgentSettings) -> dict[str, Any]:
    """Return the settings in force, without what may be secret by its kind."""
    shown: dict[str, Any] = msgspec.to_builtins(settings)
    for section in shown.values():
        if isinstance(section, dict) and section.get("command"):
            section["command"] = [section["command"][0], PROGRAMS]
    shown["machine"] = sorted(shown["machine"])
    return shown


def _versions() -> str:
    installed = {}
    for name in ("lark-agent", *DEPENDENCIES):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return _json({
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "host": socket.gethostname(),
        "kernel": platform.release(), "machine": platform.machine(), "python": sys.version,
        "system": platform.freedesktop_os_release(), "cpus": os.cpu_count(), **installed,
    })  # fmt: skip


def _status(probe: Probe) -> str:
    from google.protobuf import json_format  # noqa: PLC0415  as above

    return json_format.MessageToJson(probe.status())


def _repairs(settings: AgentSettings) -> str:
    from lark_agent.cli.gc import form, wanted  # noqa: PLC0415  as above

    return _json([form(repair) for repair in wanted(settings)])


def _journal(settings: AgentSettings, *, with_records: bool) -> str:
    from lark_agent.accounting.journal import decode  # noqa: PLC0415  as above
    from lark_agent.agent.daemon import JOURNAL_NAME  # noqa: PLC0415  as above
    from lark_agent.cli import as_json  # noqa: PLC0415  as above

    path = Path(settings.paths.state) / JOURNAL_NAME
    folder = {each.name: each.stat().st_size for each in sorted(path.parent.iterdir())}
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        count = database.execute("SELECT count(*) FROM attachments").fetchone()[0]
        found: dict[str, Any] = {"files": folder, "attachments": count}
        if with_records:
            bodies = database.execute("SELECT body FROM attachments ORDER BY attachment_id")
            found["records"] = [as_json.job(decode(body)) for (body,) in bodies]
    return _json(found)


def _listing(folder: Path) -> str:
    return "".join(f"{path.relative_to(folder)}\n" for path in sorted(folder.rglob("*")))


def _said(command: tuple[str, ...]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS,
        stdin=subprocess.DEVNULL, errors="replace",
    )  # fmt: skip
    return done.stdout + (f"\nstatus {done.returncode}: {done.stderr}" if done.returncode else "")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, default=str)
