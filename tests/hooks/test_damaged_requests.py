"""Requests of lark-run, damaged: read, named and planned for, or refused in the wire's own words.

All that a request goes through before anything is touched: datagram and descriptors, ads, who the
job is, which job it belongs to, what the site gives it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import ExitStack

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lark_agent.config import AgentSettings, parse
from lark_agent.errors import Refused
from lark_agent.hooks import identity, launch
from lark_agent.hooks import request as wire
from lark_agent.hooks.identity import Caller, Launcher
from lark_agent.policy import ads
from lark_agent.policy.site import Asking, SitePolicy
from tests.mutating import damaged

HEADER = struct.pack("<4sHH", b"LARK", 1, 0)
SEALS = 0x1 | 0x2 | 0x4 | 0x8


def field(kind: int, payload: bytes) -> bytes:
    return struct.pack("<HH", kind, len(payload)) + payload


CONDOR = HEADER + b"".join(
    [
        field(1, b"/bin/job"), field(2, b"_CONDOR_SLOT=slot1_2"), field(5, b"r"),
        field(2, b"_CONDOR_JOB_AD=/scratch/.job.ad"), field(4, b"j"), field(4, b"m"),
    ]
)  # fmt: skip
SLURM = HEADER + b"".join(
    [
        field(1, b"slurmstepd"), field(2, b"SLURM_JOB_ID=77"), field(2, b"SLURM_CLUSTER_NAME=c"),
        field(6, struct.pack("<I", 1001)), field(3, b"profile=none"), field(3, b"group=g"),
    ]
)  # fmt: skip
OTHER = HEADER + field(1, b"run") + field(2, b"PBS_JOBID=3.server") + field(5, b"p")
AD = b"""ClusterId = 12
ProcId = 0
Owner = "alice"
User = "alice@campus"
AcctGroup = "cms"
GlobalJobId = "submit#12.0#1700000000"
RequestedProfile = "small"
OutboundConnectivity = true
InboundConnectivity = false
RequestBandwidth = 0
IPProtocol = "IPv4"
NetworkAccounting = true
Requirements = (TARGET.Memory > 3)
Rank = 3.5e2
Arguments = "a \\"b\\" c"
"""
MACHINE = b'Name = "slot1_2@worker1"\nCpus = 8\nSlotID = 1\nMemory = 4000.5\n'
SITE = SitePolicy.compile(
    parse(
        AgentSettings,
        """
        [uplink]
        rate = "1 Gbit/s"
        [classes]
        campus = ["198.51.100.0/24"]
        [profiles.small]
        reach = ["campus"]
        [[rules]]
        when = 'AcctGroup == "cms" && Cpus > 4'
        set.priority = 'ProcId + 1'
        [[rules]]
        when = 'Owner == "alice"'
        profile = "small"
        """,
        "test",
    )
)
CALLERS = (
    Caller(7, 1001, "alice"),
    Caller(7, 99, "nobody", Launcher(5, 9, "condor_starter"), shared_account=True),
    Caller(7, 1001, "alice", by_root=True),
)


def memory(content: bytes, seals: int) -> int:
    descriptor = os.memfd_create("ad", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(descriptor, content)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def read(data: bytes, files: list[tuple[bytes, int]]) -> wire.RunRequest:
    """Decode a datagram with files: content and seals."""
    with ExitStack() as close:
        descriptors = [memory(*file) for file in files]
        for descriptor in descriptors:
            close.callback(os.close, descriptor)
        return wire.decode(data, descriptors)


FILES = st.lists(
    st.tuples(damaged((AD, MACHINE)), st.sampled_from([SEALS, SEALS, SEALS, 0, 0x2])), max_size=4
)


@given(damaged((CONDOR, SLURM, OTHER)), FILES, st.sampled_from(CALLERS))
@example(CONDOR, [(AD, SEALS), (MACHINE, SEALS)], CALLERS[1])
@example(SLURM, [], CALLERS[2])
@example(SLURM.replace(b"PROFILE", b"\xff"), [], CALLERS[0])
def test_a_damaged_request_is_planned_or_refused(
    data: bytes, files: list[tuple[bytes, int]], caller: Caller
) -> None:
    """Refused names the reason in one printable line; a job's names are printable and bounded."""
    try:
        request = read(data, files)
        job, ad = identity.identify(request, caller)
        machine = ads.parse(request.machine_ad or b"", "machine ad")
        key = launch.key(caller, request)
        launch.launcher(key)
        option = request.options.get("profile", "")
        plan = SITE.plan(Asking(job, ad, machine, option))
    except Refused as error:
        assert str(error)  # noqa: PT017  either end is right
        return
    for word in (job.job_id, job.owner, job.accounting_group):
        assert word.isprintable()
        assert len(word) <= identity.MAX_WORD
    assert plan.profile in SITE.words.profiles


def test_what_is_not_damaged_is_planned() -> None:
    """The samples are real ones: each gets its network."""
    for data, files, caller, profile in (
        (CONDOR, [(AD, SEALS), (MACHINE, SEALS)], CALLERS[1], "small"),
        (SLURM, [], CALLERS[2], "small"),
        (OTHER, [], CALLERS[0], "small"),
    ):
        request = read(data, files)
        job, ad = identity.identify(request, caller)
        machine = ads.parse(request.machine_ad or b"", "machine ad")
        assert SITE.plan(Asking(job, ad, machine)).profile == profile, data


@pytest.mark.parametrize("known", ["condor_starter 7 9", "condor_starter x 9", "condor_starter 7"])
def test_a_key_that_names_no_process_names_no_launcher(known: str) -> None:
    """Keys come back from the journal, whose digits a disk may have changed."""
    found = launch.launcher(known)
    assert found == (Launcher(7, 9, "condor_starter") if known.endswith("7 9") else None)
