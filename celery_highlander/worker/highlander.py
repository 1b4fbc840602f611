"""`Highlander`: installs the plugin into a Celery app, and is where singletons are declared; opens no connection."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Container, Iterable
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import click
from celery.app import utils as app_utils
from celery.bin.base import CeleryOption

from celery_highlander.config import (
    BEAT,
    MAX_PRIORITY,
    PREFIX,
    Settings,
    check_concurrency,
    check_name,
    check_names,
    is_address,
    read_settings,
)
from celery_highlander.errors import ConfigurationError
from celery_highlander.store import status as store_status
from celery_highlander.store.connecting import Target, check_url
from celery_highlander.worker.targets import target_of_engine, target_of_path

if TYPE_CHECKING:
    from celery import Celery
    from sqlalchemy import Engine

    from celery_highlander.worker.health import Health
    from celery_highlander.worker.link import KeeperLink

Function = TypeVar("Function", bound=Callable[..., object])

_INSTALLED: WeakKeyDictionary[Celery, Highlander] = WeakKeyDictionary()

_BEAT_PATH = "celery_highlander.beat.service:run"

_TWO_OF_A_NAME = "there are two singletons of the name {!r}; names are unique, rename one"


def _check_address(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value and not is_address(value):
        raise click.BadParameter(f"{value!r} is not an address like 127.0.0.1:9808, or :9808 for all of them.")
    return value


WORKER_OPTIONS = (
    CeleryOption(
        ("--highlander-eligible/--no-highlander-eligible",),
        default=None,
        help_group="Highlander Options",
        help="Whether this worker may lead singletons at all (setting: highlander_eligible).",
    ),
    CeleryOption(
        ("--highlander-priority",),
        type=click.IntRange(-MAX_PRIORITY, MAX_PRIORITY),
        default=None,
        help_group="Highlander Options",
        help="Workers of a higher priority lead first (setting: highlander_priority).",
    ),
    CeleryOption(
        ("--highlander-http-address",),
        metavar="HOST:PORT",
        callback=_check_address,
        default=None,
        help_group="Highlander Options",
        help="Answer /metrics and /healthz there (setting: highlander_http_address).",
    ),
)


def add_worker_options(app: Celery) -> None:
    """Give `celery worker` the options that differ for each node."""
    app.user_options["worker"].update(WORKER_OPTIONS)


class Highlander:
    """The plugin for one Celery app.

    Args:
        app: the app; its settings are read when a worker starts, or a command asks.
        engine: an engine that the application has already: its URL and connect arguments are used, never its pool.

    Example:
        >>> highlander = Highlander(app)
        >>> highlander.beat()
        >>> highlander.queue("ledger")
        >>> @highlander.process
        ... def price_feed(leadership):
        ...     while not leadership.wait(1.0):
        ...         ...
    """

    def __new__(cls, app: Celery, *, engine: Engine | None = None) -> Highlander:  # noqa: PYI034  # one for each app
        """Return the app's one instance: installing twice changes nothing."""
        instance = _INSTALLED.get(app)
        if instance is None:
            instance = super().__new__(cls)
            instance._install(app)
            _INSTALLED[app] = instance
        if engine is not None:
            instance._engine = engine
        return instance

    def __init__(self, app: Celery, *, engine: Engine | None = None) -> None:
        """Everything happens in `__new__`, which a second call for the same app skips."""

    @classmethod
    def of(cls, app: Celery) -> Highlander | None:
        """Return the instance that is installed in `app`, or None."""
        return _INSTALLED.get(app)

    @classmethod
    def installed_in(cls, app: Celery) -> Highlander:
        """Return the instance that is installed in `app`.

        Raises:
            ConfigurationError: there is none.
        """
        instance = cls.of(app)
        if instance is None:
            raise ConfigurationError("celery-highlander is not installed in this app.", "Write Highlander(app).")
        return instance

    def _install(self, app: Celery) -> None:
        import celery_highlander.worker.children
        import celery_highlander.worker.control  # noqa: F401  # registers `inspect highlander`
        from celery_highlander.worker.bootsteps import HighlanderStep, QueueStep

        self.app = app
        self.link: KeeperLink | None = None  # of the worker, or beat, that this process is
        self._engine: Engine | None = None
        self._known: Settings | None = None
        self._queues: dict[str, int | None] = {}
        self._processes: dict[str, str] = {}
        self._mistakes: dict[str, None] = {}
        _hide_url_from_reports()
        app.steps["worker"].add(HighlanderStep)
        app.steps["consumer"].add(QueueStep)
        add_worker_options(app)

    # -- declaring -----------------------------------------------------------------------------------------------------

    def queue(self, name: str, *, concurrency: int | None = None) -> None:
        """Have the queue `name` consumed by exactly one worker, beside those of `highlander_queues`.

        A name that cannot be one, or is taken by a process, is reported by `settings`, with all other mistakes: an
        error here would be shown with a traceback by every `celery` command.

        Args:
            name: the queue.
            concurrency: how many of its tasks may run at once, whatever the pool's size; with 1 they run one after the
                other, in the order in which they were sent. Without it, only the pool limits them.
        """
        self._check(name, others=self._processes)
        if concurrency is not None and (problem := check_concurrency(name, concurrency)):
            self._mistakes[problem] = None
        self._queues[name] = concurrency

    def beat(self) -> None:
        """Run the beat beside exactly one worker, in a process of its own; as the setting `highlander_beat` does.

        Every worker with the plugin takes part, and so does every `celery beat -S highlander`: one of them is active.
        """
        self.process(_BEAT_PATH, name=BEAT)

    def process(
        self, target: Function | str | None = None, *, name: str | None = None
    ) -> Function | Callable[[Function], Function]:
        """Run a function, of the given `Leadership`, in a process of its own on exactly one node.

        It has to return soon after `leadership.wait(…)` returned True. When it ends otherwise it is started again, with
        back-off; when it keeps ending, another node gets its chance.

        Args:
            target: the function, or its dotted path `module:function`; without it, returns a decorator.
            name: the singleton's name; the function's own if none is given. As with `queue`, a name that cannot be
                used is reported by `settings`, and so is a function that another process could not import.
        """
        if target is None:
            return lambda function: self.process(function, name=name)  # type: ignore[return-value]  # given a function
        if isinstance(target, str):
            path = target
        else:
            path = f"{target.__module__}:{target.__qualname__}"
            if "<" in path or target.__module__ == "__main__":
                self._mistakes[
                    f"the singleton process {path!r} cannot be imported by another process; define it at the top level "
                    "of a module that is not run as a script"
                ] = None
        name = name or path.replace(":", ".").rpartition(".")[2]
        known = self._processes.setdefault(name, path)
        self._check(name, others=self._queues if known == path else self._processes)  # may be imported twice
        return target  # type: ignore[return-value]  # unchanged

    def _check(self, name: str, *, others: Container[str]) -> None:
        problem = check_name(name)
        if not problem and name in others:
            problem = _TWO_OF_A_NAME.format(name)
        if problem:
            self._mistakes[problem] = None

    # -- reading -------------------------------------------------------------------------------------------------------

    def settings(self) -> Settings:
        """Return the settings, read anew.

        Raises:
            ConfigurationError: with every violation.
        """
        conf = self.app.conf
        return read_settings(conf.get, set_names(conf), _default_namespace(self.app), self._problems)

    def known_settings(self) -> Settings:
        """Return the settings as they were when this process first asked.

        Raises:
            ConfigurationError: with every violation.
        """
        if self._known is None:
            self._known = self.settings()
        return self._known

    def _problems(self, settings: Settings) -> list[str]:
        """What is wrong between the settings and what the code declares."""
        problems = list(self._mistakes)
        if not (settings.url or settings.engine or self._engine is not None):
            problems.append(
                "highlander_url is not set: the lock needs a PostgreSQL, for instance "
                "app.conf.highlander_url = 'postgresql+psycopg2://app@db/shop'"
            )
        if self._engine is not None and (settings.url or settings.engine):
            problems.append("Highlander(app, engine=…) and highlander_url or highlander_engine are given; keep one")
        if settings.url:
            try:
                check_url(settings.url)
            except ConfigurationError as error:
                problems.append(error.message)
        declared = self._processes if not settings.beat else {**self._processes, BEAT: _BEAT_PATH}
        problems += [
            _TWO_OF_A_NAME.format(name)
            for name in [*self._queues, *declared]
            if name in settings.processes or (name in settings.queues and name in declared)
        ]
        if settings.beat and BEAT in self._queues:
            problems.append(_TWO_OF_A_NAME.format(BEAT))
        unknown = sorted(set(settings.queue_concurrency) - set(self.queues(settings)))
        problems += [f"highlander_queue_concurrency names {name!r}, which is no singleton queue" for name in unknown]
        return problems

    def queues(self, settings: Settings) -> tuple[str, ...]:
        """Return the names of all singleton queues."""
        return tuple(dict.fromkeys([*settings.queues, *self._queues]))

    def concurrency(self, settings: Settings) -> dict[str, int]:
        """Return how many tasks may run at once of each queue that limits them."""
        declared = {name: number for name, number in self._queues.items() if number is not None}
        return {**declared, **settings.queue_concurrency}

    def processes(self, settings: Settings) -> dict[str, str]:
        """Return all singleton processes: name to dotted path."""
        beat = {BEAT: _BEAT_PATH} if settings.beat else {}
        return {**settings.processes, **beat, **self._processes}

    def keys(self, settings: Settings) -> dict[str, int]:
        """Return the lock keys of all singletons."""
        return check_names(settings.namespace, [*self.queues(settings), *self.processes(settings)])

    def beat_key(self, settings: Settings) -> int:
        """Return the lock key of the beat, whether workers run it or processes of its own."""
        return check_names(settings.namespace, dict.fromkeys([*self.keys(settings), BEAT]))[BEAT]

    def target(self, settings: Settings) -> Target:
        """Return where to connect to.

        Raises:
            ConfigurationError: the engine's function does not give a usable engine.
        """
        if self._engine is not None:
            return target_of_engine(self._engine)
        if settings.engine:
            return target_of_path(settings.engine)
        return Target(settings.url, {})

    @property
    def has_changing_target(self) -> bool:
        """Whether URL and credentials have to be asked for anew at each connection."""
        return self._engine is not None or bool(self.app.conf.get(f"{PREFIX}engine"))

    def status(self) -> list[store_status.SingletonStatus]:
        """Return who leads what, as the database says; works anywhere, without a worker or broker.

        Raises:
            LockSessionError: the database cannot be asked.
        """
        settings = self.settings()
        keys = self.keys(settings)
        alone = {} if BEAT in keys else {BEAT: self.beat_key(settings)}
        return store_status.read(self.target(settings), settings.namespace, settings.schema, keys, alone)

    def health(self) -> Health:
        """Return whether the worker, or beat, that this very process is does well; reads memory only.

        Raises:
            ConfigurationError: this process is neither.
        """
        from celery_highlander.worker.health import health_of  # of workers alone

        if self.link is None:
            raise ConfigurationError(
                "this process is no worker, and no beat.", "`celery -A proj highlander health` asks one over HTTP."
            )
        return health_of(self.link)

    def whereis(self, name: str) -> str | None:
        """Return the node name of the leader of `name`, usable as Celery's `destination=`; None where nobody leads."""
        leader = {entry.name: entry for entry in self.status()}.get(name)
        return leader.worker if leader is not None and leader.state == "leading" else None


def set_names(conf: Any) -> Iterable[str]:  # Celery's Settings, a chain of mappings
    """Return the `highlander_…` keys that are set in an app's configuration, without a namespace like `CELERY_`."""
    prefix = getattr(conf, "prefix", "") or ""
    found = set()
    for mapping in conf.maps:
        for key in list(mapping):
            name = str(key)
            if prefix and name.startswith(prefix):
                name = name[len(prefix) :]
            if name.lower().startswith(PREFIX):
                found.add(name.lower())
    return found


def _hide_url_from_reports() -> None:
    """Have Celery mask `highlander_url` as it masks other secrets, in `celery report` and `inspect conf`."""
    known = app_utils.HIDDEN_SETTINGS
    if not known.search(f"{PREFIX}url"):
        app_utils.HIDDEN_SETTINGS = re.compile(f"{known.pattern}|{PREFIX}url", known.flags)


def _default_namespace(app: Celery) -> str:
    main = app.main or "celery"
    return main if main != "__main__" else "celery"


def path_of_app(app: Celery) -> str:
    """Return `module:attribute` under which another process finds the app; empty if there is none."""
    candidates = [
        f"{name}:{attribute}"
        for name, module in list(sys.modules.items())
        if name != "__main__" and not name.startswith("celery")
        for attribute, value in list(getattr(module, "__dict__", {}).items())
        if value is app and isinstance(attribute, str)
    ]
    return min(candidates, key=lambda path: (len(path), path), default="")
