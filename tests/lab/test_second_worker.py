"""A lab with two workers: two agents that know nothing of each other."""

from __future__ import annotations

import os

import pytest

from tests.agent.worker import python
from tests.lab.topology import CAMPUS, WORKER, WORKER2
from tests.lab.world import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
ECHO = """
import socket
listener = socket.create_server(("", 7777))
while True:
    connection, (address, *_) = listener.accept()
    connection.send(address.encode())
    connection.close()
"""
CONNECT = """
import socket, sys, time
for attempt in range(100):
    try:
        connection = socket.create_connection((sys.argv[1], 7777), 10)
        break
    except ConnectionRefusedError:
        time.sleep(0.05)
print(connection.recv(100).decode(), end="")
"""
"""Prints the address that the far side sees."""


def test_each_worker_runs_jobs_of_its_own() -> None:
    """Both give their first sandbox out, and the far side sees two addresses."""
    with Lab(second=True) as lab:
        agents = [lab.agent(), lab.agent(host=WORKER2.name)]
        lab.start(python(ECHO), host="campus")
        first = lab.job(python(CONNECT, CAMPUS.ipv4))
        second = lab.start_job(python(CONNECT, CAMPUS.ipv4), host=WORKER2.name).result()
        assert (first.stdout, second.stdout) == (WORKER.ipv4, WORKER2.ipv4), second.stderr
        assert lab.run(["lark", "jobs", "--json"], host=WORKER2.name).stdout.count('"job_id"') == 1
        for agent in agents:
            agent.signal(15)
            assert agent.wait() == 0
        assert lab.job(["true"]).status == 125, "no agent, no job"
