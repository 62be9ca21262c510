"""Ordinary jobs of a real pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.htcondor.pool import Pool

pytestmark = [pytest.mark.root, pytest.mark.htcondor]


def test_a_job_runs_in_a_sandbox_and_has_a_record(pool: Pool) -> None:
    """A job of an unmodified pool downloads through its sandbox, and its record says so."""
    job = pool.submit("curl -sSf -o got http://server.campus.test/bytes/100000 && ip -br address")
    end = job.ended()
    assert end.status == 0, end
    assert "uplink0" not in end.stdout
    record = job.record()
    assert record["owner"] == "alice"
    assert record["received"]["bytes"] > 100000
