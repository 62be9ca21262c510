"""The guards of the agent against hostile jobs and users, each with the test that fails without it.

Guards of the programs are in `tests/datapath/mutants.py`, the firewall's rules in
`tests/sandbox/rows.py`. What only the kernel holds off (raw sockets of a plain user, ways out of a
job's own namespaces) has no guard of ours to remove.
"""

from __future__ import annotations

from typing import NamedTuple


class Guard(NamedTuple):
    """One expression or statement that holds an attack off."""

    attack: str
    file: str
    """Below lark_agent."""
    text: str
    """As it is written; once in its file."""
    instead: str
    """What takes its place, so that the guard is gone and the rest works on."""
    test: str
    """Below tests; a test of several cases with the case."""


_HOSTILE, _GUARDS, _NAT = "agent/test_hostile.py", "agent/test_guards.py", "sandbox/test_nat.py"
_SPOOFING = "agent/test_spoofing.py::test_what_a_job_forges_on_a_network_reaches_nobody"
FLOODS = (
    Guard("connections of all", "sandbox/firewall.py",
          "worker.connections // (addressing.slots + 1)", "worker.connections",
          f"{_HOSTILE}::test_connections_are_shared_out"),
    Guard("ports of others", "sandbox/nat.py",
          'sysctl.write("net/ipv4/ip_local_port_range", f"{first} {last}")', "None",
          f"{_NAT}::test_a_job_out_of_ports_is_told_before_it_is_counted"),
    Guard("neighbours of all, on a network", "sandbox/nearby.py",
          "    counter drop\n", "    counter accept\n",
          "agent/test_networks.py::test_a_job_that_calls_its_whole_network_deafens_nobody"),
    Guard("every sandbox", "agent/gate.py",
          "self._attachments.held_by(uid) + self._asking[uid] >= most", "False",
          f"{_GUARDS}::test_one_user_cannot_take_every_sandbox"),
    Guard("every sandbox, at once", "agent/gate.py",
          "self._attachments.held_by(uid) + self._asking[uid] >= most",
          "self._attachments.held_by(uid) >= most",
          f"{_GUARDS}::test_a_burst_does_not_get_past_the_limit"),
    Guard("every connection of the gate", "agent/gate.py",
          "_MOST or self._open_by_user[peer.uid] >= _MOST_PER_USER:", "_MOST:",
          "agent/test_gate.py::test_one_user_has_a_limit"),
    Guard("bandwidth that is another's", "shaping/booking.py",
          "wanted.of(direction) > free.of(direction)", "False",
          "agent/test_shaping.py::test_bandwidth_is_booked_while_a_job_runs"),
    Guard("shares that nobody keeps", "shaping/tree.py",
          "max(MINIMUM, plan.guarantee.of(self._direction))", "MINIMUM",
          "agent/test_under_attack.py::test_floods_leave_a_share_and_its_record_right"),
)  # fmt: skip

NETWORKS = (
    Guard("forged frames, on a bridge", "sandbox/guard.py",
          "            self._hang(sandbox, Hooks.HOST)", "            pass",
          f"{_SPOOFING}[bridge]"),
    Guard("forged frames, on macvlan", "sandbox/guard.py",
          "namespaces.run_inside(sandbox.name, lambda: self._hang(sandbox, Hooks.SANDBOX))", "pass",
          f"{_SPOOFING}[macvlan]"),
    Guard("forged frames, on Open vSwitch", "sandbox/guard.py",
          "            self._hang(sandbox, Hooks.HOST)", "            pass",
          f"{_SPOOFING}[ovs]"),
    Guard("forged frames, where the worker is the router", "sandbox/veth.py",
          "self._datapath.attach(self._links.netlink, index, slot)", "pass",
          "agent/test_own_namespace.py::test_root_of_the_namespace_is_held_to_the_plan"
          "[sends_from_other_mac-spoofed-mac]"),
)  # fmt: skip

CALLERS = (
    Guard("a second sandbox", "agent/callers.py", "network != self._host", "False",
          "agent/test_gate.py::test_one_job_one_sandbox"),
    Guard("a sandbox from a namespace of its own", "agent/callers.py", "network != self._host",
          "False",
          "agent/test_gate.py::test_a_namespace_of_ones_own_is_refused"),
    Guard("a second network, without a sandbox", "agent/callers.py", "host.is_held(peer.pid)",
          "False", "agent/test_host.py::test_a_job_has_no_second_network"),
    Guard("root", "agent/callers.py", "peer.uid == 0 and not request.user", "False",
          "agent/test_gate.py::test_root_is_refused"),
    Guard("another's account", "agent/callers.py", "peer.uid != 0 and request.user is not None",
          "False", "agent/test_members.py::test_a_user_speaks_for_no_account[bob]"),
)  # fmt: skip

HOST = (
    Guard("a plan that nothing enforces", "policy/vocabulary.py",
          "def check_unsandboxed(plan: NetworkPlan, throttles: Callable[[str], bool]) -> None:\n",
          "def check_unsandboxed(plan: NetworkPlan, throttles: Callable[[str], bool]) -> None:\n"
          "    return\n",
          "agent/test_host.py::test_what_nothing_enforces_is_refused"
          "[dscp-8-connectivity host has no dscp]"),
    Guard("stepping out of the group", "sandbox/host.py",
          "plan.reach is not None or plan.cut or plan.quotas or plan.ip is not Family.ANY", "False",
          "agent/test_host.py::test_delegated_groups_are_counted_and_hold_nothing"),
    Guard("sending after the end, without a sandbox", "sandbox/host.py",
          "self._loaded().unbind(number)", "pass",
          "agent/test_host.py::test_survivors_are_cut_off"),
)  # fmt: skip

LIFE = (
    Guard("sending after the end", "agent/attachments.py",
          "                self._datapath.deactivate(slot)\n            crash",
          "                pass\n            crash",
          "agent/test_isolation.py::test_the_plan_of_an_ended_job_is_off"),
    Guard("going on through a cut", "agent/enforcing.py", "if plan.cut:", "if False:",
          "agent/test_change.py::test_a_job_is_cut_off_and_let_go_on"),
    Guard("a change of one's own plan", "agent/service.py",
          "caller, self._admin_group)\n            if not sight.everything:",
          "caller, self._admin_group)\n            if False:",
          "agent/test_change.py::test_only_admins_change_jobs"),
    Guard("a firewall that somebody flushed", "agent/follow.py",
          "await self._in_kernel(self._worker.restore_firewall)", "False",
          f"{_GUARDS}::test_a_flushed_firewall_comes_back"),
    Guard("connections of an earlier job", "sandbox/veth.py", "conntrack.forget(set(addresses))",
          "pass", f"{_NAT}::test_connections_are_forgotten_with_the_sandbox"),
)  # fmt: skip

GUARDS = (*FLOODS, *NETWORKS, *CALLERS, *HOST, *LIFE)
