"""Every error that agent and collector get over is counted, returned, or allowed here for a reason.

The `except` clauses and `suppress` calls are read from the source, so that a new one is found.
"""

from __future__ import annotations

import ast
import threading
from collections import Counter
from pathlib import Path

import lark_agent
from lark_agent import trouble

ROOT = Path(lark_agent.__file__).parent
ROOMS = ("agent", "accounting", "sandbox", "collector")
COUNTERS = {"errors", "build_errors", "refusals"}
TELLING = {"end_call", "_refuse", "_end", "_unwell", "append"}
"""Calls that hand an error to whoever asked."""
ORDINARY = {
    "TimeoutError": "the end of a wait that was meant to end",
    "FileNotFoundError": "what was to go is gone",
    "ProcessLookupError": "what was to end has ended",
    "BrokenPipeError": "who asked hung up, and its pidfd says so",
    "ConnectionResetError": "who asked hung up, and its pidfd says so",
}
"""May be suppressed anywhere."""
ALLOWED = {
    "accounting/allotments.py is_whole": "says no, and who asked sets the file aside",
    "accounting/salvage.py _is_record": "says no, and the row is left out",
    "accounting/salvage.py _copy": "a row of a damaged file, which is counted as such",
    "accounting/salvage.py _readable": "the damage itself: the next rows are tried",
    "agent/callers.py _user": "an account without a name has a number",
    "agent/daemon.py _remove_shared": "the agent ends, and its counters with it",
    "agent/daemon.py _take_down": "the agent ends, and its counters with it",
    "agent/follow.py guard_firewall": "reads until nothing is left, and looks anyway",
    "agent/forwards.py _carry": "the far end is gone, and the near one is closed with it",
    "agent/forwards.py _copy": "one end closed the connection, which closes the other",
    "agent/forwards.py _serve": "the far end refused; the caller sees its own connection close",
    "agent/gate.py _closed": "the loop has ended, and its counters with it",
    "agent/gate.py _outcome": "the caller hung up, and its pidfd says so",
    "agent/gate.py _refuse": "the refusal is counted above; the caller is not there to read it",
    "agent/launchers.py watch": "the launcher has ended",
    "agent/link.py _pause": "no certificate: who reports counts it",
    "agent/link.py _renew": "returned as a reason, and counted by `keep_fresh`",
    "agent/link.py keep_fresh": "no certificate: who reports counts it",
    "agent/metering.py _change": "the job has just ended",
    "agent/neighbours.py run": "kept as a reason, and counted below",
    "agent/neighbours.py _follow": "silence: the jobs are forgotten",
    "agent/own.py obtain": "the caller hung up",
    "agent/recovery.py _find": "the process has ended",
    "agent/reporter.py run": "kept as a reason, and counted below",
    "agent/service.py _name": "an account without a name has a number",
    "collector/daemon.py _start": "the writer counts it",
    "collector/daemon.py _warn_if_exposed": "a name is no address",
    "collector/daemon.py watch": "the writer counts it",
    "collector/writer.py _run": "the queue is empty",
    "sandbox/firewall.py stands": "says no, and who asked writes and counts it",
    "sandbox/host.py _group": "the control group is gone",
    "sandbox/host.py _move": "the process has ended; the job is refused",
    "sandbox/leases.py _client": "says that no client runs",
    "sandbox/leases.py _run": "said in the client's output, and its status is not 0",
    "sandbox/leases.py read": "says that there is no lease",
    "sandbox/leases.py stop": "the namespace is gone, and its client with it",
    "sandbox/openings.py _write": "everything is written anew, which raises if it cannot be",
    "sandbox/resolver.py _servers": "a line that is no name server",
    "sandbox/resolver.py _text": "no file is a file without name servers",
}


def silent() -> set[str]:
    """Return every file and function where an error ends that nobody counts or is told of."""
    trees = {
        f"{room}/{file.name}": ast.parse(file.read_text(encoding="utf-8"))
        for room in ROOMS
        for file in (ROOT / room).glob("*.py")
    }
    functions = [
        (f"{where} {node.name}", node)
        for where, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return {
        where
        for where, function in functions
        for node in ast.walk(function)
        if (isinstance(node, ast.ExceptHandler) and not answered(node))
        or (isinstance(node, ast.Call) and suppresses(node))
    }


def name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def suppresses(call: ast.Call) -> bool:
    """Tell whether it is `suppress` of what is not ordinary."""
    types = {ast.unparse(argument) for argument in call.args}
    return name_of(call) == "suppress" and not types <= ORDINARY.keys()


def answered(handler: ast.ExceptHandler) -> bool:
    """Tell whether a clause raises, counts, or hands its error on."""
    for node in (node for statement in handler.body for node in ast.walk(statement)):
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "trouble.met":
            return True
        if isinstance(node, ast.AugAssign) and any(
            isinstance(part, ast.Attribute) and part.attr in COUNTERS for part in ast.walk(node)
        ):
            return True
        tells = isinstance(node, ast.Return) or (
            isinstance(node, ast.Call) and name_of(node) in TELLING
        )
        if tells and any(
            isinstance(part, ast.Name) and part.id == handler.name for part in ast.walk(node)
        ):
            return True
        if (
            isinstance(node, ast.Call)
            and name_of(node) == "append"
            and "problems" in ast.unparse(node)
        ):
            return True
    return False


def test_every_error_is_counted_or_told() -> None:
    """An `except` or `suppress` that does neither is listed above with its reason, and no other."""
    found = silent()
    assert found - ALLOWED.keys() == set(), "count it with trouble.met, or say why not"
    assert ALLOWED.keys() - found == set(), "these need no permission any more"


def test_a_name_stands_in_one_place() -> None:
    """So a count says which error it was."""
    names = Counter(
        ast.unparse(node.args[0])
        for file in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "trouble.met"
    )
    assert len(names) > 20
    assert [name for name, number in names.items() if number > 1] == []


def test_any_thread_may_count() -> None:
    """Nothing is lost between threads."""

    def count() -> None:
        for _ in range(5000):
            trouble.met("a test")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trouble.counts()["a test"] == 20_000
