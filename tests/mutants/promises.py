"""The promises of docs/reliability.md, each with a mutation of the code that breaks it visibly.

`attack` is how the row of the fault begins, and the test is one that the row names.
`test_promises.py` holds that every row has one. `python -m tests.mutants promises` makes them all.
"""

from __future__ import annotations

from tests.mutants.guards import Guard

_NATIVE = "hooks/native"
_PINS, _SALVAGE = "datapath/pins.py", "accounting/test_salvage.py"
_CARRY, _RESTART = "datapath/test_carry_over.py", "agent/test_restart.py"
KILLS = (
    Guard("the agent is killed at any of its named steps", "agent/recovery.py",
          "[repair.slot for repair in todo if isinstance(repair, Dismantle)]", "[]",
          "agent/test_crash_points.py::test_killed_at_every_point[start]"),
    Guard("… and a step is added", "agent/reporter.py", '"ack.sent"', '"sent.ack"',
          "agent/test_crash_points.py::test_every_point_is_somebodys"),
    Guard("the agent is stopped or killed, and jobs end", "agent/attachments.py",
          "self._consider(attachment, ExitReason.AGENT_ABSENT)", "pass",
          f"{_RESTART}::test_jobs_outlive_the_agent"),
    Guard("the agent is told to stop", "agent/tasks.py",
          "asyncio.wait(self._running, timeout=_AGAIN_SECONDS)", "asyncio.wait(self._running)",
          "agent/test_tasks.py::test_a_lost_cancellation_holds_up_no_stop"),
    Guard("leftovers of a killed agent", "agent/reconcile.py",
          "in _objects(kernel) if slot not in held", "in ()",
          f"{_RESTART}::test_a_killed_agents_leftovers_are_dismantled"),
    Guard("any other difference between kernel and journal", "agent/reconcile.py",
          "in rivals[:-1]", "in rivals[:0]",
          "agent/test_reconcile.py::test_no_record_is_lost"),
    Guard("something appears under our names", "sandbox/pool.py",
          "if sandbox.slot in self.busy:", "if False:",
          "agent/test_rounds.py::test_a_slot_taken_before_it_repairs_is_let_be"),
    Guard("a table changes while the kernel lists it", "linux/netlink.py",
          "bool(got_flags & NLM_F_DUMP_INTR)", "False",
          "linux/test_netlink.py::test_an_interrupted_dump_is_read_again"),
    Guard("a table changes while the kernel lists it", "linux/links.py",
          "except NetlinkDumpInterrupted:\n                continue",
          "except NetlinkDumpInterrupted:\n                raise",
          "linux/test_links.py::test_an_interrupted_dump_of_links_is_read_again"),
    Guard("the pins are removed under a job", "agent/reconcile.py",
          "return None if counts else Why.NO_COUNTERS", "return None",
          f"{_RESTART}::test_removed_pins_end_the_accounting_of_a_job"),
    Guard("a release with another layout", _PINS, "if name in older and name in KEPT:",
          "if False:", f"{_CARRY}::test_no_packet_falls_between_two_layouts"),
    Guard("a release with another layout", _PINS,
          "            _remove(current)\n            crash",
          "            _remove(found)\n            crash",
          f"{_CARRY}::test_an_upgrade_that_is_killed_at_any_point"),
    Guard("a layout, or numbers of slots or addresses", _PINS,
          'if "plan" in maps and (active := active_plans(maps["plan"])):',
          "if active := set[int]():",
          f"{_CARRY}::test_another_size_of_an_older_layout_waits_for_the_jobs"),
    Guard("a layout, or numbers of slots or addresses", "agent/recovery.py",
          "if adopted and (known", "if False and (known",
          f"{_RESTART}::test_the_arithmetic_stays_while_jobs_run"),
)  # fmt: skip

DISKS = (
    Guard("power fails, twice", "agent/reconcile.py", "known.boots != {kernel.boot_id}", "False",
          "agent/test_power_loss.py::test_power_fails"),
    Guard("power cuts a write to the journal short", "accounting/journal.py",
          "journal_mode = WAL", "journal_mode = OFF",
          f"{_SALVAGE}::test_a_log_that_power_cut_short"),
    Guard("the disk loses or changes bytes of the journal", "accounting/journal.py",
          "damage.check(self._db)", "pass",
          f"{_SALVAGE}::test_damage_that_nobody_would_read_is_found"),
    Guard("the disk loses or changes bytes of the journal", "accounting/salvage.py",
          'keys, ("ASC", "DESC")', 'keys, ("ASC",)',
          f"{_SALVAGE}::test_rows_around_the_damage_are_kept"),
    Guard("the disk loses or changes bytes of `quotas.sqlite`", "accounting/allotments.py",
          "self._check_rows()", "pass",
          "accounting/test_salvage_quotas.py::test_a_row_that_nobody_wrote_is_left_out"),
    Guard("the disk is full", "accounting/damage.py", "sqlite3.SQLITE_FULL, ", "",
          f"{_SALVAGE}::test_a_full_disk_is_no_damage"),
    Guard("the disk is full", "agent/attachments.py", "self._ended.extend(batch)", "pass",
          "agent/test_full_disk.py::test_a_full_disk_loses_nothing"),
    Guard("the journal reaches its bound", "accounting/room.py",
          '"final AND acknowledged >= sequence" if reports else "final"', '"final"',
          "accounting/test_room.py::test_what_was_not_reported_stops_new_jobs_and_stays"),
)  # fmt: skip

COLLECTORS = (
    Guard("the collector is gone, killed, or back", "accounting/marks.py",
          "self.number < told.number", "False",
          "agent/test_report.py::test_a_collector_that_lost_what_it_acknowledged"),
    Guard("the collector is gone, killed, or back", "accounting/journal.py",
          'WHERE acknowledged < sequence "\n                "ORDER BY',
          'WHERE acknowledged < sequence AND NOT final "\n                "ORDER BY',
          "agent/test_report.py::test_a_collector_that_comes_later"),
    Guard("a worker is installed anew", "agent/clock.py",
          "max(now_ns, self._latest_ns + _MILLISECOND_NS)\n"
          "        return new_attachment_id(self._latest_ns, os.urandom(10))",
          "self._latest_ns + _MILLISECOND_NS\n"
          "        return new_attachment_id(self._latest_ns, bytes(10))",
          "agent/test_report.py::test_a_worker_that_was_installed_anew"),
    Guard("the worker's clock is set forward or back", "agent/recovery.py",
          "max(time.time_ns(), record.sampled_ns)", "time.time_ns()",
          "agent/test_clock.py::test_a_clock_that_is_set_by_hours"),
    Guard("the worker's clock is set forward or back", "agent/clock.py",
          "max(self._latest_ns, (UUID(attachment_id).int >> 80) * _MILLISECOND_NS)", "0",
          "agent/test_clock.py::test_ids_tell_which_came_later"),
    Guard("a collector takes connections and says nothing", "agent/reporter.py",
          "asyncio.wait_for(call.read(), _ANSWER_SECONDS)", "call.read()",
          "agent/test_reporter.py::test_no_collector_holds_the_reporter_for_ever[says nothing]"),
)  # fmt: skip

_ADMISSION, _AUTHORITY = "collector/test_admission.py", "trust/test_authority.py"
STRANGERS = (
    Guard("a machine of another authority, none", "collector/enrolling.py",
          "require_client_authentication=of_workers", "require_client_authentication=False",
          f"{_ADMISSION}::test_strangers_do_not_get_past_the_handshake"),
    Guard("a worker spoils any field of any message", "rpc/convert.py",
          "if not text.isprintable():", "if False:",
          "collector/test_spoiled_fields.py"
          "::test_a_spoiled_field_is_refused_and_the_next_worker_served"),
    Guard("a worker writes, or asks, in another's name", "collector/admission.py",
          "if member.worker != worker:", "if False:",
          f"{_ADMISSION}::test_another_workers_name_and_records_are_refused"),
    Guard("a worker writes, or asks, in another's name", "collector/ingest.py",
          "if record.worker != worker:", "if False:",
          f"{_ADMISSION}::test_another_workers_name_and_records_are_refused"),
    Guard("two machines claim one name", "collector/admission.py", "if other != machine:",
          "if False:", f"{_ADMISSION}::test_a_name_reports_from_one_machine_at_a_time"),
    Guard("a worker is revoked or replaced while it reports", "collector/admission.py",
          "stream.task.cancel()", "pass",
          f"{_ADMISSION}::test_an_open_stream_ends_with_the_right_to_it"),
    Guard("a worker is revoked or replaced while it reports", "trust/authority.py",
          "if refusal := _refusal(member, before):", 'if refusal := "":',
          f"{_AUTHORITY}::test_the_key_of_a_revoked_worker_cannot_use_its_token_again"),
    Guard("a token is stolen, used twice, or over", "trust/authority.py",
          "            if ticket.key:\n", "            if False:\n",
          f"{_AUTHORITY}::test_a_stolen_token_that_was_used_is_worthless"),
    Guard("a token is stolen, used twice, or over", "trust/authority.py",
          "if each.ends <= self._now():", "if False:",
          f"{_AUTHORITY}::test_a_token_that_is_over_admits_nobody"),
    Guard("certificates end and the authority changes", "trust/authority.py",
          "if made <= known)", "if True)",
          f"{_AUTHORITY}::test_a_new_signer_is_known_to_all_before_it_is_shown"),
)  # fmt: skip

CROWDS = (
    Guard("a thousand jobs ask at once", "sandbox/turns.py",
          "self._waiting[user] = mine", "self._waiting = {user: mine, **self._waiting}",
          "sandbox/test_pool.py::test_users_who_wait_take_turns"),
    Guard("all of it, at random", "agent/gate.py",
          'crash.here("grant.sent")\n        finally:\n            os.close(descriptor)',
          'crash.here("grant.sent")\n        finally:\n            pass',
          "soak/test_soak.py::test_the_books_equal_the_wire_whatever_fails"),
)  # fmt: skip

WORDS = (
    Guard("a row of the journal has another plan", "accounting/salvage.py",
          'damage.decoded(row["plan"], NetworkPlan)', "pass",
          "accounting/test_damaged_rows.py::test_a_damaged_row_stops_no_agent"),
    Guard("malformed HTTP/2 or gRPC at any door", "rpc/frontdoor.py",
          "sink.write_eof()", "pass",
          "agent/test_malformed.py::test_malformed_frames_disturb_nobody[agent]"),
    Guard("requests of `lark-run`, ads", "hooks/request.py",
          "if len(kinds) != len(descriptors):", "if False:",
          "hooks/test_damaged_requests.py::test_a_damaged_request_is_planned_or_refused"),
    Guard("users choose names of processes", "linux/process.py",
          'text.split("\\n") if', "text.splitlines() if",
          "linux/test_damaged_replies.py::test_a_process_of_any_name_is_whose_it_is"),
    Guard("a collector says what none says", "agent/reporter.py",
          "if number >= 1 << 63:", "if False:",
          "agent/test_strange_collectors.py"
          "::test_a_strange_answer_ends_a_stream_and_nothing_else"),
    Guard("a client opens calls without end", "rpc/frontdoor.py",
          '("grpc.max_concurrent_streams", 16),', "",
          "rpc/test_limits.py::test_a_connection_has_so_many_calls_at_a_time"),
    Guard("any field of a question", "rpc/convert.py", "> LAST_TIME_NS:", "> 1 << 70:",
          "rpc/test_spoiled_queries.py"
          "::test_a_spoiled_question_is_refused_and_the_next_answered"),
    Guard("whatever the agent, a user, the startd", f"{_NATIVE}/answer.h",
          "message->msg_flags & MSG_TRUNC", "false",
          "fuzz/test_corpus.py::test_nothing_that_others_say_breaks_a_program"),
    Guard("an agent closes at any step", f"{_NATIVE}/answer.h", "size != 12 ||", "",
          "fuzz/test_corpus.py::test_nothing_that_others_say_breaks_a_program"),
    Guard("an agent never answers", f"{_NATIVE}/answer.h",
          "left > 0 ? (int)left * 1000 : 0", "-1",
          "hooks/test_hostile_agents.py"
          "::test_an_agent_that_never_answers_is_waited_for_a_bounded_time"),
)  # fmt: skip

PROMISES = (*KILLS, *DISKS, *COLLECTORS, *STRANGERS, *CROWDS, *WORDS)
