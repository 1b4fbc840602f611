"""What keepers for users' tests promise: `FakeKeeper`, and `RealKeeper` with a real keeper and a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from celery_highlander import (
    Highlander,
    Leadership,
    SingletonConflictError,
    SingletonRunLostError,
    SingletonTask,
    StaleTermError,
    current_leadership,
    current_run,
    leader_elected,
    leader_stepped_down,
    leadership_lost,
    skipped_key,
)
from celery_highlander.clock import boot_time
from celery_highlander.errors import DatabaseUnavailableError, HighlanderError
from celery_highlander.testing import FakeKeeper, RealKeeper, StillRunningError, deliver
from tests.arena.cluster import TIMELY
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from tests.arena.servers import Database

    Keeper = FakeKeeper | RealKeeper

LIMIT = 20.0
NOWHERE = "postgresql+psycopg2://nobody@127.0.0.1:1/nothing"


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("tested", broker="memory://", set_as_current=False)
    app.conf.update(TIMELY, highlander_url=NOWHERE)
    highlander = Highlander(app)
    highlander.queue("ledger")
    yield app
    app.close()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.postgres)])
def keeper(request: pytest.FixtureRequest, app: Celery) -> Iterator[Keeper]:
    if request.param == "fake":
        with FakeKeeper(app) as fake:
            yield fake
        return
    database: Database = request.getfixturevalue("postgres")
    with RealKeeper(app, database.url()) as real:
        yield real


@pytest.fixture
def engine(request: pytest.FixtureRequest, keeper: Keeper) -> Engine:
    url = "sqlite://" if isinstance(keeper, FakeKeeper) else request.getfixturevalue("postgres").url()
    return create_engine(url, poolclass=NullPool)


class Heard:
    """What the signals of leadership said."""

    def __init__(self) -> None:
        self.all: list[tuple[Any, ...]] = []

    def elected(self, sender: str, token: int, **_: object) -> None:
        self.all.append(("elected", sender, token))

    def stepped_down(self, sender: str, token: int, reason: str, **_: object) -> None:
        self.all.append(("stepped down", sender, token, reason))

    def lost(self, sender: str, token: int, reason: str, **_: object) -> None:
        self.all.append(("lost", sender, token, reason))


@pytest.fixture
def heard() -> Iterator[Heard]:
    made = Heard()
    pairs = [(leader_elected, made.elected), (leader_stepped_down, made.stepped_down), (leadership_lost, made.lost)]
    for signal, receiver in pairs:
        signal.connect(receiver)
    yield made
    for signal, receiver in pairs:
        signal.disconnect(receiver)


class Diary:
    """A singleton process that writes down what it sees of its leadership."""

    def __init__(self) -> None:
        self.lines: list[tuple[bool, bool]] = []

    def __call__(self, leadership: Leadership) -> str:
        self.lines.append((leadership.is_valid(), current_leadership() is leadership))
        while not leadership.wait(0.01):
            leadership.progress()
        self.lines.append((leadership.is_valid(), current_leadership() is leadership))
        return "stopped"


# -- leadership --------------------------------------------------------------------------------------------------------


def test_work_sees_a_valid_leadership_until_its_leader_is_deposed(keeper: Keeper, heard: Heard) -> None:
    diary = Diary()
    term = keeper.elect("highlander")
    assert (term.leadership.name, term.leadership.token) == ("highlander", term.token)
    assert abs(time.time() - term.leadership.elected_at) < LIMIT
    assert boot_time() < term.leadership.lease_deadline <= boot_time() + TIMELY["highlander_lease_duration"]
    work = term.run(diary)
    wait_until(lambda: diary.lines, LIMIT, "the work to begin")
    assert heard.all == [("elected", "highlander", term.token)]
    term.step_down("because")
    assert not work.is_running
    assert work.wait() == "stopped"
    assert diary.lines == [(True, True), (False, True)]
    assert term.leadership.wait(LIMIT)
    assert heard.all[1:] == [("stepped down", "highlander", term.token, "because")]


def test_a_leadership_lives_longer_than_one_lease(keeper: Keeper) -> None:
    term = keeper.elect("highlander")
    first = term.leadership.lease_deadline
    wait_until(lambda: term.leadership.lease_deadline > first, LIMIT, "a renewed lease")
    assert term.leadership.is_valid()
    assert not term.leadership.wait(0.0)


def test_a_lost_session_is_told_as_a_loss_and_stops_all_work(keeper: Keeper, heard: Heard) -> None:
    diaries = [Diary(), Diary()]
    terms = [keeper.elect("highlander"), keeper.elect("ledger")]
    works = [term.run(diary) for term, diary in zip(terms, diaries, strict=True)]
    wait_until(lambda: all(diary.lines for diary in diaries), LIMIT, "all work to begin")
    keeper.lose_session()
    assert [work.wait() for work in works] == ["stopped", "stopped"]
    assert {line[:3] for line in heard.all[2:]} == {("lost", term.name, term.token) for term in terms}
    assert all(line[3] for line in heard.all[2:]), "without a reason"
    later = keeper.elect("highlander")
    assert later.token > terms[0].token
    assert later.leadership.is_valid()
    assert not terms[0].leadership.is_valid()


def test_work_that_does_not_stop_in_time_fails_the_test(keeper: Keeper) -> None:
    release = threading.Event()
    term = keeper.elect("highlander")
    work = term.run(lambda: release.wait(LIMIT))
    begun = time.monotonic()
    with pytest.raises(StillRunningError, match="'highlander' did not stop in time"):
        term.step_down()
    assert time.monotonic() - begun > TIMELY["highlander_drain_timeout"] * 0.9
    release.set()
    assert work.wait() is True


def test_what_work_raises_is_raised_when_its_leader_is_deposed(keeper: Keeper) -> None:
    def fail() -> None:
        raise ValueError("no price")

    term = keeper.elect("highlander")
    term.run(fail)
    with pytest.raises(ValueError, match="no price"):
        term.step_down()


def test_there_is_one_leader_and_nobody_is_elected_while_the_database_is_away(keeper: Keeper) -> None:
    term = keeper.elect("highlander")
    with pytest.raises(HighlanderError, match="has a leader already"):
        keeper.elect("highlander")
    keeper.lose_database()
    assert not term.leadership.is_valid()
    with pytest.raises(DatabaseUnavailableError):
        keeper.elect("highlander")
    keeper.restore_database()
    assert keeper.elect("highlander").token > term.token


def test_a_fence_refuses_whoever_was_followed_by_another_leader(keeper: Keeper, engine: Engine) -> None:
    first = keeper.elect("highlander")
    with engine.begin() as connection:
        first.leadership.fence(connection)
    first.step_down()
    with engine.begin() as connection:
        first.leadership.fence(connection)  # nobody has followed yet
    second = keeper.elect("highlander")
    with engine.begin() as connection:
        second.leadership.fence(connection)
    with pytest.raises(StaleTermError), engine.begin() as connection:
        first.leadership.fence(connection)


# -- singleton runs ----------------------------------------------------------------------------------------------------


def task_of(app: Celery, function: Any, name: str = "tested.sync", **singleton: Any) -> Any:
    function.__name__ = "sync"  # also of a lambda: Celery makes a function of that name
    return app.task(base=SingletonTask, singleton=singleton, name=name, shared=False)(function)


def runs(task: Any, result: object, args: tuple[object, ...] = ()) -> None:
    """See it run, as soon as the key is free: a real one is given back a moment after the run that held it."""

    def ran() -> bool:
        outcome = deliver(task, args)
        return bool(outcome.state == "SUCCESS" and outcome.result == result)

    wait_until(ran, 10, f"{task.name} to run")


def test_a_held_key_skips_raises_or_retries_the_next_run(app: Celery, keeper: Keeper) -> None:
    outcomes = {}
    for on_conflict in ("skip", "raise", "retry", "requeue"):
        options = {"unique_on": "account", "on_conflict": on_conflict, "retry_delay": 600.0}
        sync = task_of(app, lambda account: account, f"tested.{on_conflict}", **options)
        with keeper.hold(sync, (42,), task_id="first") as key:
            assert key == f"tested.{on_conflict}(account=42)"
            outcomes[on_conflict] = deliver(sync, (42,))
            assert deliver(sync, (43,)).get() == 43
        runs(sync, 42, (42,))
    assert skipped_key(outcomes["skip"].get()) == "tested.skip(account=42)"
    assert {name: outcome.state for name, outcome in outcomes.items()} == {
        "skip": "SUCCESS",
        "raise": "FAILURE",
        "retry": "RETRY",
        "requeue": "IGNORED",
    }
    conflict = outcomes["raise"].result
    assert isinstance(conflict, SingletonConflictError)
    assert (conflict.key, conflict.task_id) == ("tested.raise(account=42)", "first")


def test_as_many_runs_as_the_limit_says_hold_a_key(app: Celery, keeper: Keeper) -> None:
    sync = task_of(app, lambda: "ran", limit=2, on_conflict="raise")
    with keeper.hold(sync, task_id="one"):
        runs(sync, "ran")
        with keeper.hold(sync, task_id="two"):
            assert deliver(sync).state == "FAILURE"
            with pytest.raises(SingletonConflictError), keeper.hold(sync):
                pass
        runs(sync, "ran")


def test_a_run_that_waits_begins_when_the_key_is_given_back(app: Celery, keeper: Keeper) -> None:
    sync = task_of(app, lambda: "ran", on_conflict="wait", wait_timeout=LIMIT)
    outcomes = []
    with keeper.hold(sync):
        waiting = threading.Thread(target=lambda: outcomes.append(deliver(sync).get()))
        waiting.start()
        waiting.join(0.3)
        assert outcomes == []
    waiting.join(LIMIT)
    assert outcomes == ["ran"]


def test_a_run_whose_lock_is_taken_away_is_aborted(app: Celery, keeper: Keeper) -> None:
    rolled_back = []

    def body() -> None:
        try:
            keeper.lose_session()
            time.sleep(LIMIT)
        except SingletonRunLostError:
            rolled_back.append(True)
            raise

    outcome = deliver(task_of(app, body, key="account"))
    assert outcome.state == "FAILURE"
    assert isinstance(outcome.result, SingletonRunLostError)
    assert rolled_back
    runs(task_of(app, lambda: "ran", "tested.later", key="account"), "ran")


def test_without_a_database_runs_are_retried_or_fail_or_go_without_a_lock(app: Celery, keeper: Keeper) -> None:
    keeper.lose_database()
    states = {}
    for on_unavailable in ("retry", "raise", "run"):
        sync = task_of(app, lambda: "ran", f"tested.{on_unavailable}", on_unavailable=on_unavailable, retry_delay=600.0)
        states[on_unavailable] = deliver(sync).state
    assert states == {"retry": "RETRY", "raise": "FAILURE", "run": "SUCCESS"}
    keeper.restore_database()
    sync = task_of(app, lambda: "ran", "tested.later")
    runs(sync, "ran")


@pytest.mark.usefixtures("keeper")
def test_tokens_of_fenced_runs_rise_and_a_fence_refuses_the_earlier_run(app: Celery, engine: Engine) -> None:
    runs = []

    def body() -> int | None:
        runs.append(current_run())
        with engine.begin() as connection:
            current_run().fence(connection)
        return current_run().token

    sync = task_of(app, body, fenced=True)
    first, second = deliver(sync).get(), deliver(sync).get()
    assert second > first
    with pytest.raises(StaleTermError), engine.begin() as connection:
        runs[0].fence(connection)


@pytest.mark.usefixtures("keeper")
def test_one_message_waits_for_a_key_until_its_run_begins(app: Celery) -> None:
    sync = task_of(app, lambda: "ran", scope="queue")
    first = sync.delay()
    assert sync.delay().id == first.id
    assert deliver(sync, task_id=first.id).get() == "ran"
    assert sync.delay().id != first.id


# -- the fake alone ----------------------------------------------------------------------------------------------------


def test_an_expired_lease_is_invalid_and_nobody_says_so(app: Celery) -> None:
    with FakeKeeper(app) as fake:
        term = fake.elect("highlander")
        fake.expire(term)
        assert not term.leadership.is_valid()
        assert term.leadership.lease_deadline <= boot_time()
        assert term.leadership.wait(0.0)


def test_the_fake_needs_neither_an_app_nor_a_declared_singleton() -> None:
    with FakeKeeper() as fake:
        diary = Diary()
        term = fake.elect("price-feed")
        term.run(diary)
        wait_until(lambda: diary.lines, LIMIT, "the work to begin")
    assert diary.lines[-1] == (False, True)
