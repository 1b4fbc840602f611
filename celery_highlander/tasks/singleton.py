"""`@singleton_task`, and the task class behind it: at most one run at a time for each key.

The lock is taken around the run, by the process that runs it, whatever way its message took: `delay`, `send_task`,
beat, a canvas, or a redelivery. A plain call of the task is a plain call of its function, as ever in Celery.
"""

from __future__ import annotations

import logging
import random
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery import Task, shared_task
from celery.exceptions import Ignore, Reject, Retry
from celery.utils import uuid
from celery.utils.time import maybe_make_aware

from celery_highlander.election.keys import lock_key
from celery_highlander.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    HighlanderError,
    SingletonConflictError,
)
from celery_highlander.keeper.run_table import Want
from celery_highlander.store.fencing import fence_key
from celery_highlander.store.waiting import Waiting
from celery_highlander.tasks import waiting
from celery_highlander.tasks.client import client_for
from celery_highlander.tasks.keys import KeyMaker
from celery_highlander.tasks.options import OPTIONS, SingletonOptions, misspelt
from celery_highlander.worker.highlander import Highlander
from celery_highlander.worker.signals import run_skipped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from celery import Celery
    from celery.local import Proxy
    from celery.result import AsyncResult
    from sqlalchemy import Connection

    from celery_highlander.config import Settings
    from celery_highlander.store.waiting import Row

logger = logging.getLogger("celery_highlander")

SLOT_BITS = 10
"""The keys of a limit's slots follow each other in the lowest bits."""

REQUEUE_PATIENCE = 0.5
"""Seconds that a run waits before its message goes to the end of its queue, so that it does not go round and round."""

SKIPPED = "highlander_skipped"
"""The one key of the result of a run that was skipped."""

_BEGUN = "highlander_begun"


class SingletonRun:
    """The present run of a singleton task.

    Attributes:
        key: the text of its key.
        token: its fencing token, None unless the task is `fenced`; later runs of the key have higher ones.
    """

    def __init__(self, key: str, token: int | None, slot: int, schema: str) -> None:
        self.key = key
        self.token = token
        self._slot = slot
        self._schema = schema

    def fence(self, connection: Connection) -> None:
        """Tie the transaction of `connection` to this run; see `celery_highlander.fence`.

        Raises:
            StaleTermError: a later run of this key has begun; roll back.
            ConfigurationError: the task is not `fenced`.
        """
        if self.token is None:
            raise ConfigurationError(f"the run of {self.key} has no token.", "Declare the task with fenced=True.")
        fence_key(connection, self._slot, self.token, f"the run of {self.key}", schema=self._schema)

    def __repr__(self) -> str:
        return f"<SingletonRun of {self.key!r}, token {self.token}>"


_current: ContextVar[SingletonRun | None] = ContextVar("highlander_run", default=None)


def current_run() -> SingletonRun:
    """Return the present run of a singleton task.

    Raises:
        HighlanderError: the calling code is not part of one.
    """
    run = _current.get()
    if run is None:
        raise HighlanderError("there is no singleton run here.", "current_run() works in tasks of @singleton_task.")
    return run


class SingletonTask(Task):
    """The base of singleton tasks; the options of `SingletonOptions` are in the attribute `singleton`.

    Example:
        >>> @app.task(base=SingletonTask, singleton={"unique_on": ["account_id"]})
        ... def sync_account(account_id): ...
    """

    abstract = True
    singleton: Mapping[str, Any] = {}

    _options: SingletonOptions
    _key_of: KeyMaker
    _mistake: ConfigurationError | None = None

    @classmethod
    def bind(cls, app: Celery) -> Celery:
        """Join the app's own task class, which may be another one than Celery's, and read the options."""
        if not cls.__dict__.get("abstract") and not issubclass(cls, app.Task):
            cls.__bases__ = (*cls.__bases__, app.Task)
        bound = super().bind(app)
        if not cls.__dict__.get("abstract"):
            cls._read_options()
        return bound

    @classmethod
    def _read_options(cls) -> None:
        cls._mistake = None
        try:
            cls._options = SingletonOptions.of(cls.singleton, str(cls.name))
            run = cls.run if isinstance(cls.__dict__.get("run"), staticmethod) else cls.run.__get__(object())
            cls._key_of = KeyMaker(str(cls.name), run, cls._options.unique_on, cls._options.key)
        except ConfigurationError as error:
            cls._mistake = error  # for whoever starts a worker, or calls it: not for every `celery` command

    @classmethod
    def waits_alone(cls) -> bool:
        """Return whether one message at most waits for each key."""
        return cls._mistake is None and cls._options.scope != "run"

    @classmethod
    def mistake(cls) -> ConfigurationError | None:
        """Return what is wrong with the options."""
        return cls._mistake

    def apply_async(
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any
    ) -> AsyncResult[Any]:
        """Send the task; where one message at most may wait, return the result of the one that waits already.

        A message that has a place in a chain, group or chord, or links, is sent all the same: others wait for it.

        Raises:
            ConfigurationError: the options of the task cannot work.
            SingletonKeyError: the arguments do not fit the task.
            SingletonConflictError: a message waits already, and `on_conflict` is `"raise"`.
        """
        if self._mistake is not None:
            raise self._mistake
        is_again = task_id is not None and task_id == self.request.id
        if self._options.scope == "run" or self.app.conf.task_always_eager or is_again:
            return super().apply_async(args, kwargs, task_id=task_id, **options)
        task_id = task_id or uuid()
        found = self._claim(args or (), kwargs or {}, task_id, options)
        if found is not None and not _has_a_place(options):
            if self._options.on_conflict == "raise":
                raise SingletonConflictError(
                    f"{found.name} waits already: task {found.task_id}.", key=found.name, task_id=found.task_id
                )
            logger.debug("%s waits already: task %s", found.name, found.task_id)
            return self.AsyncResult(found.task_id)
        try:
            return super().apply_async(args, kwargs, task_id=task_id, **options)
        except BaseException:
            waiting.forget(self.app, task_id)
            raise

    def _claim(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], task_id: str, options: Mapping[str, Any]
    ) -> Row | None:
        key = self._key_of(args, kwargs)
        route = self.app.amqp.router.route(dict(options), self.name, args, kwargs)
        queue = options.get("queue") or route.get("queue") or ""
        expires = options.get("expires", self.expires)
        if isinstance(expires, datetime):
            expires = (maybe_make_aware(expires) - datetime.now(timezone.utc)).total_seconds()
        message = Waiting(
            key=self._base(key),
            namespace=self._settings().namespace,
            name=key,
            task=str(self.name),
            task_id=task_id,
            queue=str(getattr(queue, "name", queue)),
            lives=None if expires is None else float(expires),
        )
        try:
            return waiting.claim(self.app, message)
        except DatabaseUnavailableError as error:
            if self._options.on_unavailable == "raise":
                raise
            # Its run is locked all the same; a message that is not sent would be lost.
            logger.warning("%s is sent without asking whether it waits already: %s", key, error)
            return None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task: under its lock, if it is Celery that runs it."""
        request = self.request
        if request.called_directly or getattr(request, _BEGUN, False):
            return super().__call__(*args, **kwargs)
        setattr(request, _BEGUN, True)  # from here on it is the task's own code that calls it
        if self._mistake is not None:
            raise self._mistake
        if self._options.scope == "run" or request.is_eager:
            return self._run_singly(args, kwargs)
        comes_again = False
        try:
            return self._run_singly(args, kwargs)
        except (Retry, Ignore, Reject) as error:
            comes_again = bool(getattr(error, "requeue", True))
            raise
        finally:
            if not comes_again:
                self._wait_no_more()

    def _wait_no_more(self) -> None:
        # Whoever has the run's result may call the task again at once: then the row has to be free.
        waiting.forget(self.app, str(self.request.id), wait=True)

    def _settings(self) -> Settings:
        highlander = Highlander.of(self.app)
        if highlander is None:
            raise ConfigurationError(
                f"{self.name} is a singleton task, and celery-highlander is not installed in its app.",
                "Write Highlander(app).",
            )
        return highlander.known_settings()

    def _base(self, key: str) -> int:
        return lock_key(self._settings().namespace, f"task\x1f{key}") >> SLOT_BITS << SLOT_BITS

    def _run_singly(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        options, key = self._options, self._key_of(args, kwargs)
        want = Want(
            base=self._base(key),
            limit=options.limit,
            name=key,
            task=str(self.name),
            task_id=str(self.request.id),
            wait=self._patience(),
            fenced=options.fenced,
            abort=options.on_lost == "abort",
        )
        gone_with_it = options.scope == "both" and not self.acks_late
        schema = self._settings().schema
        began = False
        try:
            with client_for(self.app).hold(want, gone_with_it=gone_with_it) as (slot, token):
                began = True
                if options.scope == "queue":
                    self._wait_no_more()
                mark = _current.set(SingletonRun(key, token, slot, schema))
                try:
                    return self._run_unlocked(args, kwargs)
                finally:
                    _current.reset(mark)
        except SingletonConflictError as error:
            if began:
                raise
            conflict = error
        except DatabaseUnavailableError as error:
            if began or options.on_unavailable == "raise":
                raise
            if options.on_unavailable == "retry":
                self._again(str(error), self._delay())
            logger.warning("%s[%s] runs WITHOUT its lock: %s", self.name, self.request.id, error)
            return self._run_unlocked(args, kwargs)
        return self._conflict(key, conflict)

    def _run_unlocked(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        # Celery's own `__call__` would hide the request from the task.
        inherited = super().__call__
        if inherited.__func__ is Task.__call__:
            return self.run(*args, **kwargs)
        return inherited(*args, **kwargs)

    def _patience(self) -> float:
        on_conflict = self._options.on_conflict
        if on_conflict == "wait" or (self.request.is_eager and on_conflict in ("retry", "requeue")):
            return self._options.wait_timeout
        return REQUEUE_PATIENCE if on_conflict == "requeue" else 0.0

    def _delay(self) -> float:
        return self._options.retry_delay * random.uniform(0.5, 1.5)

    def _conflict(self, key: str, conflict: SingletonConflictError) -> Any:
        on_conflict = self._options.on_conflict
        if conflict.task_id == self.request.id and not self.request.is_eager:
            # The broker has delivered it twice, and the first delivery runs: state, and what follows in a canvas, are
            # that run's. Should that run die, this delivery is the one that is left.
            self._again(str(conflict), self._delay(), told=False)
        if callable(on_conflict):
            return on_conflict(self, conflict)
        if on_conflict == "skip":
            logger.info("%s[%s] is skipped: %s", self.name, self.request.id, conflict, extra={"action": "run_skipped"})
            run_skipped.send(sender=self, task_id=str(self.request.id), key=key)
            return {SKIPPED: key}
        if on_conflict == "raise":
            raise conflict
        if on_conflict == "requeue":
            self._again(str(conflict), None, told=False)
        self._again(str(conflict), self._delay())
        return None

    def _again(self, reason: str, delay: float | None, *, told: bool = True) -> None:
        """Send the message again, as it was, and end this run; it does not count as one of the task's retries.

        Args:
            reason: why.
            delay: seconds from now.
            told: whether the task's state says so.

        Raises:
            Retry: to be run again later.
            Ignore: to be run again when its turn comes.
        """
        if self.request.is_eager:
            raise SingletonConflictError(reason)
        message = self.signature_from_request(self.request, countdown=delay)
        message.apply_async()
        if not told:
            logger.info("%s[%s] goes back to its queue: %s", self.name, self.request.id, reason)
            raise Ignore(reason)
        raise Retry(reason, when=delay, sig=message)


def _has_a_place(options: Mapping[str, Any]) -> bool:
    """Whether others wait for the very message with these options; the last one of a chain has an empty `chain`."""
    # Celery gives `reply_to` to every signature whose id is known before it is sent: that of a chord's body, too.
    return "chain" in options or any(options.get(name) for name in ("chord", "group_id", "link", "reply_to"))


def skipped_key(result: object) -> str | None:
    """Return the key for which a run was skipped, given the run's result; None where it was not.

    Example:
        >>> skipped_key(sync_account.delay(42).get())
        'shop.sync_account(account_id=42)'
    """
    found = result.get(SKIPPED) if isinstance(result, dict) and len(result) == 1 else None
    return found if isinstance(found, str) else None


def singleton_tasks(app: Celery) -> list[SingletonTask]:
    """Return the singleton tasks of an app."""
    return [task for task in app.tasks.values() if isinstance(task, SingletonTask)]


def singleton_task(*args: Any, **options: Any) -> Proxy | Callable[[Callable[..., Any]], Proxy]:
    """Make a function a task of which one run at a time is made for each key, in all apps.

    Used like `shared_task`, with or without arguments: takes every option of a Celery task, `base` and `bind` included,
    and those of `SingletonOptions`.

    Example:
        >>> @singleton_task(unique_on=["account_id"], on_conflict="skip")
        ... def sync_account(account_id): ...
    """
    ours = {name: options.pop(name) for name in OPTIONS if name in options}
    ours |= {name: value for name, value in options.items() if misspelt(name)}  # reported with all other mistakes
    base = options.pop("base", None)
    if base is None or issubclass(SingletonTask, base):
        base = SingletonTask
    elif not issubclass(base, SingletonTask):
        base = type(f"Singleton{base.__name__}", (SingletonTask, base), {"abstract": True})
    return shared_task(*args, base=base, singleton=ours, **options)
