"""Checks of this worker's enrolment: that it has an identity, its own, secret, good for long."""

from __future__ import annotations

import stat
import time
from typing import TYPE_CHECKING

from lark_agent.cli.doctor.findings import fail, ok, warn
from lark_agent.errors import PrerequisiteError
from lark_agent.trust.identity import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lark_agent.cli.doctor.findings import Finding
    from lark_agent.cli.doctor.probe import Probe

AGAIN = (
    "on the collector `lark-collector token create --worker {worker} --replace`, and with what it "
    "prints `lark-agent enroll` here"
)
DAY = 86_400


def certificate(probe: Probe) -> Iterator[Finding]:
    """Look at the identity that reports are sent with."""
    link, worker = probe.settings.collector, probe.settings.worker_name
    if not link.address:
        yield ok("no collector is configured: none is needed")
        return
    if link.insecure:
        yield warn(
            f"reports go to {link.address} in the clear, to whoever answers there, and anybody who "
            "reaches it can write reports in this worker's name",
            "take insecure = true out on both sides, and enrol: docs/security.md",
        )
        return
    path = probe.path(link.identity)
    try:
        known = load(path)
    except PrerequisiteError as error:
        yield fail(f"{error}", AGAIN.format(worker=worker).replace(" --replace", ""))
        return
    if known.worker != worker:
        yield fail(
            f"{link.identity} is of worker {known.worker}, and this one is {worker}",
            f'set worker = "{known.worker}" in agent.toml, or: {AGAIN.format(worker=worker)}',
        )
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield fail(
            f"others than root may read the key in {link.identity}",
            f"chmod 600 {link.identity}; then a new key: {AGAIN.format(worker=worker)}",
        )
    now = time.time()
    days = (known.ends - now) / DAY
    if days <= 0:
        yield fail(
            f"the certificate ended {-days:.1f} days ago; records wait on this worker",
            AGAIN.format(worker=worker),
        )
    elif now > known.renew_at() + DAY:
        yield warn(
            f"the certificate ends in {days:.1f} days and could not be renewed since "
            f"{(now - known.renew_at()) / DAY:.1f}",
            "the reason is in journalctl -u lark-agent; once it is over, the worker has to be "
            "enrolled again",
        )
    else:
        yield ok(f"of worker {known.worker}; ends in {days:.1f} days, and renews itself before")
