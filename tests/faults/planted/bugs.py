"""The list of planted bugs: what each does wrong, as a change of the text, and the test that has to go red.

Where two layers guard the same thing, both have to be broken before anybody can see it; such bugs change two places.
`python -m tests.faults.planted` runs all of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """A replacement in one file of the package; `old` has to be there exactly once."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Bug:
    """A planted bug, and the test (below `tests/faults`) that finds it."""

    name: str
    changes: tuple[Change, ...]
    test: str


_NO_DEADLINE = Change(
    "worker/supervisor.py",
    "    while (left := cell.deadline - boot_time()) > 0:\n",
    "    while True:\n        left = 1.0\n",
)

_NO_SWITCH_IN_A_CHILD = Change(
    "worker/children.py", "deadline + self._margin / 2 if left <= self._margin else 0.0", "0.0"
)

_NO_ANSWER_AWAITED = Change("election/node.py", "        if overdue and self.connected:\n", "        if False:\n")
_NO_ANSWER_AWAITED_BY_TCP = Change(
    "store/connecting.py",
    "int(patience * 1000)\n",
    'int(patience * 1000)\n    arguments |= {"tcp_user_timeout": 3600000, "keepalives": 0}\n',
)
_NO_TIME = Change("store/terms.py", "greatest(0, least({now}", "0 * greatest(0, least({now}")
_NO_RUN_KILLED_BY_THE_KEEPER = Change(
    "keeper/run_table.py", "                effects.append(KillRun(run.id))\n", "                pass\n"
)

BUGS = (
    Bug(
        "a keeper goes on leading for a dead worker",
        (Change("keeper/loop.py", "if self._worker_gone_at is None or self._dying:", "if True:"),),
        "test_signals.py::test_a_killed_worker_leaves_nothing_and_is_taken_over_at_once[rabbitmq-psycopg2]",
    ),
    Bug(
        "the lock is given back as soon as the worker was told to stop",
        (
            Change(
                "keeper/loop.py",
                "        if process is None:\n            return\n        process.stop(reason)",
                "        if process is None:\n"
                "            return self._work_stopped(name, token, reason, 0.0, boot_time())\n"
                "        process.stop(reason)",
            ),
        ),
        "test_signals.py::test_a_warm_shutdown_hands_over_after_the_running_task[SIGTERM]",
    ),
    Bug(
        "the worker goes on without its keeper",
        (
            Change(
                "worker/link.py",
                "list(self._held.items()):\n            self._stop(name, held.token, reason, deadline",
                "[]:\n            self._stop(name, held.token, reason, deadline",
            ),
            Change("worker/link.py", "        self._watch_lease(now)\n", ""),
        ),
        "test_signals.py::test_a_killed_keeper_ends_the_terms_and_the_worker_lives_on_with_a_new_one",
    ),
    Bug(
        "a new keeper forgets what was said together with the hello",
        (Change("keeper/__main__.py", "keeper.run(further)", "keeper.run([])"),),
        "test_signals.py::test_a_killed_keeper_ends_the_terms_and_the_worker_lives_on_with_a_new_one",
    ),
    Bug(
        "a frozen worker is not noticed",
        (Change("keeper/loop.py", "            self._freeze(now)\n", "            pass\n"),),
        "test_signals.py::test_a_frozen_worker_is_killed_by_its_keeper",
    ),
    Bug(
        "a frozen keeper is not noticed",
        (Change("worker/link.py", '            self._keeper_lost("keeper silent")\n', "            pass\n"),),
        "test_signals.py::test_a_frozen_keeper_is_killed_by_its_worker",
    ),
    Bug(
        "a pool child does not end itself when the lease ends",
        (
            Change(
                "worker/children.py",
                "                if left <= 0:\n                    self._die()",
                "                if left <= 0:\n                    left = 1.0",
            ),
            _NO_SWITCH_IN_A_CHILD,
        ),
        "test_signals.py::test_a_node_frozen_as_a_whole_has_stopped_its_work_before_its_lease_ends",
    ),
    Bug(
        "a pool child goes on until it is known what its task has started",
        (
            Change("worker/children.py", "if os.fork() == 0:\n", "if True:\n"),
            Change("worker/children.py", "            victim.send(signal.SIGSTOP)\n", ""),
            Change("worker/children.py", "if victim is not None and os.getppid() == child:", "if victim is not None:"),
            _NO_SWITCH_IN_A_CHILD,
        ),
        "test_slow_process_table.py",
    ),
    Bug(
        "a keeper waits for whoever reads the log",
        (Change("keeper/__main__.py", "            if not poll.poll(0):\n", "            if False:\n"),),
        "test_unread_log.py::test_its_singletons_go_to_another_node_and_it_is_killed[prefork]",
    ),
    Bug(
        "a singleton process does not end itself when the lease ends",
        (
            Change(
                "worker/launcher.py",
                "        if left <= 0:\n            os.kill(os.getpid(), signal.SIGKILL)",
                "        if left <= 0:\n            left = 1.0",
            ),
            _NO_DEADLINE,
        ),
        "test_processes.py::test_a_stubborn_process_of_a_frozen_node_is_dead_before_the_lease_ends",
    ),
    Bug(
        "singleton processes outlive their keeper",
        (
            Change("worker/supervisor.py", "        if channel in ready:\n            return False\n", ""),
            Change("worker/supervisor.py", "    die_with(parent, END_SIGNAL)\n", ""),
            Change("worker/supervisor.py", "(left := cell.deadline - boot_time())", "(left := boot_time())"),
            Change(
                "worker/launcher.py",
                "        except ChannelClosedError:\n            os.kill(os.getpid(), signal.SIGKILL)",
                "        except ChannelClosedError:\n            return",
            ),
        ),
        "test_signals.py::test_a_process_that_never_stops_dies_with_its_keeper",
    ),
    Bug(
        "a standby consumes the singleton queue",
        (Change("worker/queues.py", "        return self.token is not None and not self", "        return not self"),),
        "test_who_consumes.py::test_only_the_leader_consumes_the_singleton_queue[redis-2-plain]",
    ),
    Bug(
        "a queue that the application declares stays selected",
        (
            Change("worker/consumers.py", "        self._app.amqp.queues.deselect([name])\n", "        pass\n"),
            Change(
                "worker/consumers.py",
                "            if self._is_consuming(name, consumer):\n",
                "            if self._is_consuming(name, consumer) and name in self._tags:\n",
            ),
        ),
        "test_who_consumes.py::test_a_singleton_queue_that_the_application_declares_is_not_consumed_by_a_standby",
    ),
    Bug(
        "the gate is always open, and nothing is given back",
        (
            Change(
                "worker/queues.py",
                "        return self.is_wanted and boot_time() < self._cell.deadline",
                "        return True",
            ),
            Change(
                "worker/consumers.py",
                "            work.give_back([*ours, *self._take_limited(work, consumer)], consumer)\n",
                "",
            ),
        ),
        "test_message_storm.py::test_every_message_is_processed_and_none_by_two_at_once[rabbitmq]",
    ),
    Bug(
        "a process that keeps failing is never handed on",
        (
            Change(
                "keeper/processes.py",
                "if not self.stopping and not self.handed_on and self.quick_ends < len(RESTART_DELAYS):",
                "if not self.stopping and (self.quick_ends := 0) == 0:",
            ),
        ),
        "test_processes.py::test_a_process_that_keeps_failing_on_one_node_is_handed_on_to_another",
    ),
    Bug(
        "a supervisor adopts no orphans",
        (Change("worker/supervisor.py", "    adopt_orphans()\n", ""),),
        "test_grandchildren.py::test_a_shutdown_hands_over_when_every_descendant_is_dead",
    ),
    Bug(
        "a supervisor ends with the process, whatever that has started",
        (Change("worker/supervisor.py", "        end_all_below()\n", ""),),
        "test_grandchildren.py::test_no_descendant_lives_when_the_process_starts_again[process]",
    ),
    Bug(
        "what a killed supervisor leaves behind is not looked for",
        (Change("keeper/loop.py", "if not process.is_clear and (left", "if process.stopping and (left"),),
        "test_grandchildren.py::test_no_descendant_lives_when_the_process_starts_again[supervisor]",
    ),
    Bug(
        "a supervisor does not hold the deadline",
        (_NO_DEADLINE,),
        "test_unreachable_work.py::test_a_process_in_a_c_call_is_dead_before_the_lease_of_its_frozen_node_ends",
    ),
    Bug(
        "the orphans of a dead worker's tasks are not looked for",
        (Change("keeper/marks.py", "        for pid in young - found.keys():\n", "        for pid in set[int]():\n"),),
        "test_subprocesses.py::test_they_are_dead_when_the_worker_was_killed",
    ),
    Bug(
        "of a task only the pool child is killed",
        (Change("worker/pools.py", "freeze(lambda: searcher.find([pid], pid))", "freeze(lambda: [pid])"),),
        "test_subprocesses.py::test_they_are_dead_when_the_drain_of_a_lost_term_ends",
    ),
    Bug(
        "a task runs again beside what its dead child has started",
        (Change("worker/runs.py", "                process_died(self)\n", "                pass\n"),),
        "test_subprocesses.py::test_they_are_dead_when_the_task_runs_again_because_its_child_was_killed",
    ),
    Bug(
        "a task's mark stays when it has ended",
        (Change("worker/children.py", "            self._mark.remove()\n", "            pass\n"),),
        "test_subprocesses.py::test_they_are_dead_when_the_worker_was_killed",
    ),
    Bug(
        "a spawned pool child loads nothing of ours",
        (Change("worker/bootsteps.py", "(*w.app.conf.include, _CHILDREN)", "tuple(w.app.conf.include)"),),
        "test_spawned_children.py::test_a_spawned_child_knows_its_term_and_dies_with_its_worker[by-setting]",
    ),
    Bug(
        "a worker leaves a dead keeper unreaped as it starts itself again",
        (Change("worker/link.py", "            self._keeper.wait(KEEPER_EXIT_TIMEOUT)\n", "            pass\n"),),
        "test_service_managers.py::test_a_sighup_restarts_the_worker_and_leaves_nothing_of_the_old_one",
    ),
    Bug(
        "PID 1 does not reap what its keeper left",
        (Change("worker/link.py", "        reap_inherited(native.waitpid)\n", ""),),
        "test_container.py::test_the_worker_reaps_what_its_dead_keeper_leaves_to_it",
    ),
    Bug(
        "nonsense is taken for a message",
        (
            Change("keeper/messages.py", "    if fault := fault_in(message, vocabulary):\n", "    if fault := '':\n"),
            Change("keeper/messages.py", 'not isinstance(message.get("type"), str)', "False"),
            Change(
                "keeper/messages.py",
                'raise MessageError(f"not a message ({error}): {line[:80]!r}") from error',
                'return {"type": ""}',
            ),
        ),
        "test_nonsense.py",
    ),
    Bug(
        "a term that still waited leaves its stopped mark",
        (
            Change(
                "election/protocol.py",
                "Release(term.token if term.cleared else None, event.reason)",
                "Release(term.token, event.reason)",
            ),
        ),
        "test_chain_of_waiting_leaders.py::"
        "test_the_last_of_a_chain_waits_until_the_first_ones_lease_is_over[frozen-SIGTERM]",
    ),
    Bug(
        "a term owes its successor nothing but its own lease",
        (Change("store/terms.py", "else greatest(:lease, coalesce(k.owed, 0)) end", "else :lease end"),),
        "test_chain_of_waiting_leaders.py::"
        "test_the_last_of_a_chain_waits_until_the_first_ones_lease_is_over[frozen-killed with its keeper]",
    ),
    Bug(
        "the heartbeat of a term that still waits forgets its debt",
        (Change("store/terms.py", "case when held.acting then :lease else s.owed end", ":lease"),),
        "test_chain_of_waiting_leaders.py::"
        "test_the_last_of_a_chain_waits_until_the_first_ones_lease_is_over[frozen-terminated]",
    ),
    Bug(
        "a session that breaks at once counts as a success",
        (Change("election/reconnects.py", "        if self.is_steady(now):\n", "        if self._opened_at < inf:\n"),),
        "test_full_disk.py::test_nobody_acts_while_no_term_can_be_recorded",
    ),
    Bug(
        "a trouble is told at every retry",
        (Change("keeper/complaints.py", "is_new = len(self._told) > known", "is_new = True"),),
        "test_password_rotation.py::"
        "test_running_sessions_go_on_and_a_lost_one_says_once_that_the_password_is_wrong[psycopg2]",
    ),
    Bug(
        "a heartbeat that fails is passed over",
        (
            Change(
                "keeper/session.py",
                "                terms.heartbeat(held, acting)\n",
                "                with contextlib.suppress(Exception):\n"
                "                    terms.heartbeat(held, acting)\n",
            ),
        ),
        "test_lost_rights.py::test_nobody_acts_until_the_role_has_its_rights_back"
        "[update on highlander_singleton, highlander_term-it lacks update on highlander_singleton]",
    ),
    Bug(
        "no row is owed nothing",
        (
            Change(
                "election/protocol.py",
                "return now + wait_for(timing.lease)  # no row",
                "return now  # no row",
            ),
        ),
        "test_dropped_database.py::test_nobody_acts_beside_the_old_leader_when_the_database_is_there_again_at_once",
    ),
    Bug(
        "an engine is asked for the password only once",
        (
            Change(
                "keeper/loop.py",
                "if self._asks_for_target and self._worker_gone_at is None:",
                "if self._asks_for_target and self._known_target is None:",
            ),
        ),
        "test_password_rotation.py::test_an_engine_that_knows_the_new_password_is_asked_for_it",
    ),
    Bug(
        "a thread's task is not interrupted, and the worker not killed for it",
        (
            Change("worker/pools.py", "        if self._tasks.interrupt(run.request.id):\n", "        if False:\n"),
            Change("keeper/loop.py", "            self._overdue[name] = (min(", "            _ = (min("),
            Change("worker/link.py", "        if self._held and now >= self.cell.deadline:\n", "        if False:\n"),
        ),
        "test_pools.py::test_a_running_task_is_stopped_before_the_next_leader_acts[threads-session terminated]",
    ),
    Bug(
        "a killed greenlet counts as a success",
        (
            Change(
                "worker/runs.py",
                "                if self.killed:\n                    self.put_back()",
                "                if False:\n                    self.put_back()",
            ),
        ),
        "test_pools.py::test_a_running_task_is_stopped_before_the_next_leader_acts[gevent-keeper killed]",
    ),
    Bug(
        "the limit of a queue is not kept at the gate, nor told to the broker",
        (
            Change("worker/queues.py", "(any(True for _ in before) or len(live) >= self.concurrency)", "False"),
            Change(
                "worker/channels.py",
                "        limit = (self._work.concurrency or 0) + scheduled\n",
                "        limit = 16\n",
            ),
        ),
        "test_serial_queue.py::test_messages_are_processed_in_order_over_failovers[prefork-rabbitmq]",
    ),
    Bug(
        "what a dead leader left goes behind all other messages in Redis",
        (
            Change(
                "worker/rescue.py",
                "restore_by_tag(tag, client=client)",
                "restore_by_tag(tag, client=client, leftmost=True)",
            ),
        ),
        "test_serial_queue.py::test_messages_are_processed_in_order_over_failovers[prefork-redis]",
    ),
    Bug(
        "a message that is delivered again runs beside itself",
        (
            Change(
                "worker/queues.py",
                "        return any(run.request.id == request.id for run in live)\n",
                "        return False\n",
            ),
        ),
        "test_broker_blip.py::"
        "test_a_message_delivered_again_does_not_run_beside_itself_nor_after_it_has_ended[prefork-rabbitmq]",
    ),
    Bug(
        "the work of a lost connection is forgotten",
        (Change("worker/queues.py", "            run.orphaned = not run.begun\n", "            self._forget(run)\n"),),
        "test_broker_blip.py::test_a_task_that_a_lost_connection_left_running_is_dead_before_the_lease_ends[rabbitmq]",
    ),
    Bug(
        "a main loop that hangs is not noticed",
        (Change("worker/link.py", "        self._watch_loop(now)\n", ""),),
        "test_stuck_work.py::test_a_leader_whose_main_loop_hangs_is_deposed[prefork-rabbitmq]",
    ),
    Bug(
        "messages that wait for their rate limit are kept",
        (Change("worker/consumers.py", "[*ours, *self._take_limited(work, consumer)]", "ours"),),
        "test_kept_back_messages.py::test_messages_of_a_limited_rate_do_not_stay_with_a_worker_that_has_lost_the_queue",
    ),
    Bug(
        "a process that makes no progress is left alone",
        (
            Change(
                "keeper/loop.py",
                "            elif process.is_hung(now, self._progress_timeout):\n",
                "            elif False:\n",
            ),
        ),
        "test_stuck_work.py::test_a_process_that_makes_no_progress_goes_to_another_node",
    ),
    Bug(
        "every copy of the message of a tick is run",
        (
            Change(
                "keeper/ledger.py",
                "                self._answer(answers)\n",
                "                self._answer(dict.fromkeys(answers, True))\n",
            ),
        ),
        "test_ticks_run_once.py::test_of_two_copies_one_is_run[rabbitmq-prefork-celery]",
    ),
    Bug(
        "the next keeper is not asked what the last one did not answer",
        (Change("worker/link.py", "            self.once.ask_again()\n", "            pass\n"),),
        "test_ticks_run_once.py::test_messages_wait_for_a_database_that_is_down[rabbitmq-prefork-True]",
    ),
    Bug(
        "messages that wait for the ledger leave room for others in a serial queue",
        (Change("worker/queues.py", " + self._consumers.count_asking(self)", ""),),
        "test_ticks_run_once.py::test_in_a_serial_queue_ticks_keep_their_place[prefork-redis]",
    ),
    Bug(
        "a leader that is cut off has no deadline of its own",
        (
            Change("election/lease.py", "return lease_deadline - self.kill_margin\n", "return lease_deadline + 60.0\n"),
            Change(
                "election/lease.py",
                "return lease_deadline - self.kill_margin - self.drain_timeout\n",
                "return lease_deadline + 60.0\n",
            ),
            _NO_ANSWER_AWAITED,
            _NO_ANSWER_AWAITED_BY_TCP,
        ),
        "test_packets_to_database_dropped.py::"
        "test_work_is_dead_before_the_lease_ends_and_another_node_takes_over_when_packets_are_dropped[both-redis]",
    ),
    Bug(
        "a lease is counted from the answer of a heartbeat",
        (
            Change("keeper/session.py", "HeartbeatAnswered(sent_at)", "HeartbeatAnswered(boot_time())"),
            _NO_ANSWER_AWAITED,
        ),
        "test_slow_link.py::test_a_late_answer_does_not_make_a_lease_longer",
    ),
    Bug(
        "a successor acts as soon as it has the lock",
        (
            Change("election/protocol.py", "return sighting.first_seen_at + wait_for(before.owed)", "return now"),
            Change("election/protocol.py", "return now + wait_for(before.owed)", "return now"),
        ),
        "test_half_open_connection.py::"
        "test_nobody_acts_beside_a_leader_whose_session_ended_at_the_server_without_a_word[redis]",
    ),
    Bug(
        "the server keeps the session of a client that is gone",
        (
            Change("store/connecting.py", '"idle_session_timeout": timing.lease', '"idle_session_timeout": 3600'),
            Change("store/connecting.py", '"tcp_user_timeout": timing.lease', '"tcp_user_timeout": 3600'),
            Change("store/connecting.py", '"tcp_keepalives_idle": "2"', '"tcp_keepalives_idle": "3600"'),
        ),
        "test_half_open_connection.py::test_the_server_drops_a_session_whose_client_is_gone_without_a_word[redis]",
    ),
    Bug(
        "a heartbeat only reads",
        (
            Change(
                "store/terms.py",
                'renewed, pid, recovering = self._run("heartbeat", **values).one()',
                'renewed, pid, recovering = len(terms), *self._run("alive").one()[1:]',
            ),
        ),
        "test_commits_hang.py::test_a_leader_whose_commits_hang_stops_in_time_and_nobody_else_begins[psycopg2]",
    ),
    Bug(
        "a token rises with neither timeline nor time",
        (Change("store/terms.py", "(cast(:timeline as bigint) << 32)", "(cast(:timeline as bigint) * 0)"), _NO_TIME),
        "test_database_failover.py::test_nobody_acts_too_early_after_a_failover_that_lost_the_newest_terms",
    ),
    Bug(
        "a stopped mark is believed after a failover",
        (Change("election/protocol.py", "if not before.same_instance:", "if False:"),),
        "test_database_failover.py::"
        "test_a_stopped_mark_from_before_a_failover_says_nothing_of_the_terms_that_were_lost",
    ),
    Bug(
        "a lease goes by the wall clock",
        (
            Change(
                "clock.py",
                'getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)',
                "time.CLOCK_REALTIME",
            ),
        ),
        "test_wall_clock_steps.py::test_a_workers_clock_does_not_matter[forward]",
    ),
    Bug(
        "the next beat does not publish what was claimed",
        (
            Change(
                "store/ticks.py",
                '        return self.again([row.id for row in self._run("open")])\n',
                "        return []\n",
            ),
        ),
        "test_beat_struck_around_a_tick.py::test_a_tick_runs_once_when_the_beat_is_killed[redis-after_claim]",
    ),
    Bug(
        "a tick is settled before it is published",
        (
            Change(
                "beat/ledger.py",
                "        claimed = self._ledger.claim(advances)\n",
                "        claimed = self._ledger.claim(advances)\n        self._ledger.settle(dict.fromkeys(claimed))\n",
            ),
        ),
        "test_beat_struck_around_a_tick.py::test_a_tick_runs_once_when_the_beat_is_killed[redis-before_publish]",
    ),
    Bug(
        "a beat does not look back",
        (Change("store/ticks.py", "else e.last_run_at end", "else excluded.last_run_at end"),),
        "test_beat_dies.py::"
        "test_no_tick_is_lost_or_doubled_when_the_active_beat_ends_by[redis-kill -9 with its keeper]",
    ),
    Bug(
        "a tick is keyed by when it was seen to be due",
        (
            Change(
                "beat/ledger.py",
                "Tick(tick_id(self._ledger.key, name, at), name, at) for at in",
                "Tick(tick_id(self._ledger.key, name, now), name, now) for at in",
            ),
        ),
        "test_beat_dies.py::test_no_tick_is_lost_or_doubled_when_the_active_beat_ends_by[redis-SIGTERM]",
    ),
    Bug(
        "all copies of a tick's message look like one",
        (Change("beat/ledger.py", '"copy": str(uuid.uuid4())', '"copy": tick.id'),),
        "test_beat_struck_around_a_tick.py::"
        "test_the_late_message_of_a_beat_that_was_paused_while_it_published_does_not_run_a_second_time[redis]",
    ),
    Bug(
        "what is wrong with an entry is logged with each tick",
        (Change("beat/ledger.py", "        if self._told.get(name) != reason:\n", "        if True:\n"),),
        "test_beat_broken_entries.py::test_the_others_go_on_and_the_reason_is_logged_once",
    ),
    Bug(
        "a beat that cannot publish does not let another one try",
        (Change("beat/scheduler.py", "        if now - self._failing_since > timeout:\n", "        if False:\n"),),
        "test_beat_broken_entries.py::test_a_beat_in_which_everything_fails_lets_another_one_try",
    ),
    Bug(
        "the key of a run is taken although the last one may go on",
        (Change("store/runs.py", "(holder in paid and self._overtake", "(self._overtake"),),
        "test_singleton_run_loses_its_lock.py::"
        "test_a_run_that_ignores_the_loss_of_its_session_is_killed_before_the_next_one_begins[prefork]",
    ),
    Bug(
        "a run that has lost its session goes on",
        (
            _NO_RUN_KILLED_BY_THE_KEEPER,
            Change("tasks/watch.py", "            if self._deadly:\n", "            if False:\n"),
        ),
        "test_singleton_run_loses_its_lock.py::"
        "test_a_run_that_ignores_the_loss_of_its_session_is_killed_before_the_next_one_begins[prefork]",
    ),
    Bug(
        "a run that cannot end itself is not killed",
        (_NO_RUN_KILLED_BY_THE_KEEPER,),
        "test_singleton_run_loses_its_lock.py::"
        "test_a_frozen_pool_child_whose_session_is_lost_is_killed_by_the_keeper[session]",
    ),
    Bug(
        "a run is not told that it has lost its session",
        (Change("tasks/watch.py", "                self.interrupt.raise_soon()\n", "                pass\n"),),
        "test_singleton_run_loses_its_lock.py::test_a_run_that_obeys_makes_room_at_once[prefork]",
    ),
    Bug(
        "a run trusts a keeper that is silent",
        (
            Change(
                "tasks/watch.py",
                "return run.kill_at if run.lost else self._cell.deadline",
                "return run.kill_at",
            ),
            Change("tasks/watch.py", "run.lose(reason, self._cell.deadline)", "run.lose(reason, inf)"),
        ),
        "test_singleton_run_loses_its_lock.py::test_a_run_ends_itself_while_its_keeper_is_frozen[stubborn-prefork]",
    ),
    Bug(
        "the keys of a dead process are kept",
        (
            Change(
                "keeper/desk.py",
                "        for number, task_id in client.runs.items():\n",
                "        for number, task_id in ():\n",
            ),
        ),
        "test_singleton_run_ends.py::"
        "test_the_next_run_begins_on_another_node_as_soon_as_one_has_ended[prefork-pool child killed]",
    ),
    Bug(
        "two runs of one node share a lock",
        (
            Change("keeper/run_table.py", "if self._on_base.get(base, 0) >= run.want.limit:", "if False:"),
            Change("store/runs.py", " and key not in self._held", ""),
        ),
        "test_singleton_lost_updates.py::test_no_update_is_lost[quick]",
    ),
)
