"""What a guarded scheduler keeps of the one that is guarded, and when it writes."""

from __future__ import annotations

import os
import shelve
import signal
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.beat import PersistentScheduler, Scheduler
from kombu.exceptions import OperationalError
from sqlalchemy_celery_beat.schedulers import DatabaseScheduler

from celery_highlander.beat.candidacy import TickWork
from celery_highlander.beat.guard import guarded
from celery_highlander.beat.publishing import NotLeading, Publishing
from celery_highlander.clock import boot_time
from celery_highlander.errors import ConfigurationError
from celery_highlander.keeper import cell
from celery_highlander.worker.leadership import Leadership, TermInfo
from celery_highlander.worker.schedulers import find_scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KILL_MARGIN = 0.5


@pytest.fixture
def app() -> Iterator[Celery]:
    with Celery("shop", broker="memory://", set_as_current=False) as made:
        made.conf.beat_schedule = {"hourly": {"task": "of.nobody", "schedule": timedelta(hours=1)}}
        made.conf.result_expires = None
        yield made


@pytest.fixture
def lease() -> cell.LeaseCell:
    """A lease that is not over, until its deadline is set otherwise."""
    made = cell.LeaseCell(cell.create())
    made.deadline = boot_time() + 60
    return made


@pytest.fixture
def publishing(app: Celery, lease: cell.LeaseCell) -> Publishing:
    return Publishing(Leadership(TermInfo("beat", 1, 0.0, "shop", "", KILL_MARGIN), lease), app.connection_for_write)


@pytest.fixture
def django_scheduler() -> Any:
    schedulers = pytest.importorskip("django.conf")
    if not schedulers.settings.configured:
        schedulers.settings.configure(INSTALLED_APPS=["django_celery_beat"], USE_TZ=True, SECRET_KEY="of a test")
    import django

    django.setup()
    return find_scheduler("django_celery_beat.schedulers:DatabaseScheduler")


def test_it_has_the_defaults_file_and_banner_of_the_guarded_one(
    app: Celery, publishing: Publishing, tmp_path: Path, django_scheduler: Any
) -> None:
    app.conf.beat_dburi = f"sqlite:///{tmp_path}/entries"
    for kind in (Scheduler, PersistentScheduler, DatabaseScheduler, django_scheduler):
        options = {"lazy": True, "schedule_filename": str(tmp_path / "schedule")}
        for max_interval in (None, 0, 7):
            plain = kind(app=app, max_interval=max_interval, **options)
            inner: Any = guarded(kind)(app, publishing=publishing, max_interval=max_interval, **options)
            assert inner.max_interval == plain.max_interval
            assert inner.info == plain.info
            assert isinstance(inner, kind)
    assert guarded(django_scheduler)(app, publishing=publishing, max_interval=None, lazy=True).max_interval == 5


def stored(path: Path) -> int:
    """How often the entry was sent, as the file says."""
    with shelve.open(str(path), "r") as store:
        count: int = store["entries"]["hourly"].total_run_count
        return count


@pytest.fixture
def make(app: Celery, publishing: Publishing, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes a guarded scheduler on a file in which the entry is due."""
    all_made: list[Any] = []

    def made(kind: type[Scheduler] = PersistentScheduler) -> Any:
        path = tmp_path / "schedule"
        if not all_made:
            first: Any = PersistentScheduler(app=app, schedule_filename=str(path))
            first.schedule["hourly"].last_run_at -= timedelta(hours=2)
            first.close()
        all_made.append(guarded(kind)(app, publishing=publishing, schedule_filename=str(path)))
        return all_made[-1]

    yield made
    for inner in all_made:
        inner.close()


def test_what_was_sent_is_in_the_storage_at_once(make: Callable[..., Any], tmp_path: Path) -> None:
    inner = make()
    assert inner.tick() == 0
    assert stored(tmp_path / "schedule") == 1
    assert inner.tick() > 0
    inner.close()
    assert make().tick() > 0  # the successor


def test_what_the_broker_did_not_take_is_sent_again(make: Callable[..., Any], tmp_path: Path) -> None:
    class Refused(PersistentScheduler):
        def send_task(self, *_: Any, **__: Any) -> Any:
            raise OperationalError("the broker is gone")

    inner = make(Refused)
    with pytest.raises(OperationalError):
        inner.tick()
    inner.close()
    assert stored(tmp_path / "schedule") == 0
    assert make().tick() == 0
    assert stored(tmp_path / "schedule") == 1


def test_what_can_never_be_sent_is_not_tried_again(make: Callable[..., Any], tmp_path: Path) -> None:
    class Unspeakable(PersistentScheduler):
        def send_task(self, *_: Any, **__: Any) -> Any:
            raise ValueError("an argument that cannot be serialised")

    inner = make(Unspeakable)
    assert inner.tick() == 0
    assert stored(tmp_path / "schedule") == 1
    assert inner.tick() > 0


def test_nothing_is_sent_or_written_once_the_term_has_to_stop(
    make: Callable[..., Any], tmp_path: Path, publishing: Publishing
) -> None:
    inner = make()
    inner.populate_heap()
    publishing._term._must_stop()
    with pytest.raises(NotLeading):
        inner.tick()
    with pytest.raises(NotLeading):
        inner.apply_entry(inner.reserve(inner.schedule["hourly"]))
    inner.close()
    assert stored(tmp_path / "schedule") == 0


def test_a_publication_that_the_end_of_the_term_overtakes_is_still_written_down(
    make: Callable[..., Any], tmp_path: Path, publishing: Publishing
) -> None:
    class Overtaken(PersistentScheduler):
        def send_task(self, *args: Any, **kwargs: Any) -> Any:
            publishing._term._must_stop()
            return super().send_task(*args, **kwargs)

    make(Overtaken).tick()
    assert stored(tmp_path / "schedule") == 1


def test_nothing_is_written_once_the_lease_is_over(
    make: Callable[..., Any], tmp_path: Path, lease: cell.LeaseCell
) -> None:
    class Paused(PersistentScheduler):
        def send_task(self, *args: Any, **kwargs: Any) -> Any:
            lease.deadline = boot_time() - KILL_MARGIN
            return super().send_task(*args, **kwargs)

    inner = make(Paused)
    inner.tick()
    inner._do_sync()
    inner.close()
    assert stored(tmp_path / "schedule") == 0


def test_a_signal_waits_until_what_was_sent_is_written_down(make: Callable[..., Any], tmp_path: Path) -> None:
    sent = []

    class Signalled(PersistentScheduler):
        def send_task(self, *args: Any, **kwargs: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            sent.append(super().send_task(*args, **kwargs))
            return sent[-1]

    def leave(*_: Any) -> None:
        raise SystemExit

    before = signal.signal(signal.SIGTERM, leave)
    try:
        inner = make(Signalled)
        with pytest.raises(SystemExit):
            inner.tick()
        assert signal.getsignal(signal.SIGTERM) is leave
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(sent) == 1
    assert stored(tmp_path / "schedule") == 1


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("celery.app:Celery", "not a subclass of celery.beat.Scheduler"),
        ("not_installed.schedulers:Scheduler", "cannot be imported: ModuleNotFoundError"),
        ("celery.beat:Nothing", "cannot be imported: AttributeError"),
        ("redbeat.RedBeatScheduler", "RedBeat elects by itself, with a lock in Redis"),
        ("celery_highlander.beat.scheduler:HighlanderScheduler", "is what guards other schedulers"),
    ],
)
def test_what_cannot_be_guarded_is_refused(path: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        find_scheduler(path)
    assert caught.value.hint


def test_the_term_is_not_over_while_the_storage_is_open(lease: cell.LeaseCell) -> None:
    work = TickWork(TermInfo("beat", 0, 0.0, "shop", "", KILL_MARGIN), lease, patience=1.0, timeout=10.0)
    work.start(1, 0.0)
    with work.at_work() as may_work:
        assert may_work
        work.held = True
    work.stop("a test", None, hung=False)
    assert not work.is_over(boot_time())
    assert not work.is_hung(boot_time() + 60)  # nothing is under way
    work.held = False
    assert work.is_over(boot_time())
