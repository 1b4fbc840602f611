"""The settings, read once into one frozen object, with every violation reported at once; knows nothing of Celery."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields

from celery_highlander.election.keys import lock_key
from celery_highlander.election.lease import Timing
from celery_highlander.errors import ConfigurationError

PREFIX = "highlander_"
DEFAULT_QUEUE = "highlander"
BEAT = "beat"
"""The name of the singleton that is the beat."""
OTHERS = "*"
"""Stands for every entry of the schedule that is not named itself."""
_NAME = re.compile(r"[A-Za-z0-9_.:@/+-]{1,100}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,28}")  # shows in application_name, which holds 63 bytes
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_PATH = re.compile(r"[\w.]+[:.]\w[\w.]*")
_DRIVERS = ("psycopg2", "psycopg")
_EXAMPLE = "'postgresql+psycopg2://app@db/shop'"
_DAY = 86400
_PORTS = 65536
MAX_PRIORITY = 999
MINIMUM_KILL_MARGIN = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that may be set, under its name without the prefix `highlander_`; durations are seconds.

    Attributes:
        url: SQLAlchemy URL of the database, `postgresql+psycopg2://…` or `postgresql+psycopg://…`.
        engine: instead of it, the dotted path of a function that returns a SQLAlchemy `Engine`: its URL and connect
            arguments are taken anew for every connection, its pool never.
        namespace: what keeps the singletons of several applications in one database apart.
        schema: the database schema of the tables; the role's default one if empty.
        migrate: create and change the tables at start, where the role may.
        queues: the queues that only a leader consumes.
        processes: singleton processes by name, each a dotted path `module:function`.
        lease_duration: how long a leader may act on its last confirmed heartbeat.
        heartbeat_interval: from one heartbeat to the next one.
        heartbeat_timeout: how long a heartbeat may be unanswered before the lock session counts as lost.
        drain_timeout: how long work that has to stop may take, before it is killed.
        kill_margin: how long before the lease ends the killing begins.
        poll_interval: from one try of a standby for the lock to the next one.
        worker_timeout: how long the worker's main process may be silent before its keeper takes it for frozen.
        broker_timeout: how long a leader may be without its broker before it steps down from its queues.
        progress_timeout: how long the worker's main loop, or a process that called `leadership.progress()`, may make no
            progress before another node gets its singletons.
        on_stuck: what becomes of a worker whose tasks cannot be stopped before the lease ends: `kill`, or `continue`,
            which is unsafe: the next leader acts beside it.
        queue_concurrency: how many tasks of a queue may run at once, by the queue's name; with 1 they run in order.
        beat: run the beat beside exactly one worker.
        beat_scheduler: the scheduler class that the beat guards, `module:Class`; the one with the ledger if empty.
        beat_missed: which ticks are made up for that came due while nobody published them: `latest`, `all` or `skip`;
            or one of these by the entry's name, with `*` for all others.
        beat_grace_time: after how many seconds a tick is too old for that (None: never); or by the entry's name.
        beat_once: whether this worker asks, before it runs the message of a beat's tick, if another copy of it was run.
        eligible: whether this node may lead at all (`--highlander-eligible`).
        priority: nodes of a higher priority lead first (`--highlander-priority`).
        http_address: where this node answers `/metrics` and `/healthz`: `127.0.0.1:9808`, or `:9808` on every
            address of the machine; nowhere if empty (`--highlander-http-address`).
    """

    url: str = field(default="", repr=False)
    engine: str = ""
    namespace: str = "celery"
    schema: str = ""
    migrate: bool = True
    queues: tuple[str, ...] = (DEFAULT_QUEUE,)
    processes: Mapping[str, str] = field(default_factory=dict)
    lease_duration: float = 6.0
    heartbeat_interval: float = 1.0
    heartbeat_timeout: float = 2.0
    drain_timeout: float = 2.0
    kill_margin: float = 0.5
    poll_interval: float = 0.5
    worker_timeout: float = 3.0
    broker_timeout: float = 10.0
    progress_timeout: float = 30.0
    on_stuck: str = "kill"
    queue_concurrency: Mapping[str, int] = field(default_factory=dict)
    beat: bool = False
    beat_scheduler: str = ""
    beat_missed: str | Mapping[str, str] = "latest"
    beat_grace_time: float | Mapping[str, float | None] | None = None
    beat_once: bool = True
    eligible: bool = True
    priority: int = 0
    http_address: str = ""

    @property
    def timing(self) -> Timing:
        """The durations of the election."""
        return Timing(
            lease=self.lease_duration,
            heartbeat_interval=self.heartbeat_interval,
            heartbeat_timeout=self.heartbeat_timeout,
            drain_timeout=self.drain_timeout,
            kill_margin=self.kill_margin,
            poll_interval=self.poll_interval,
        )


DURATIONS = (
    "lease_duration",
    "heartbeat_interval",
    "heartbeat_timeout",
    "drain_timeout",
    "kill_margin",
    "poll_interval",
    "worker_timeout",
    "broker_timeout",
    "progress_timeout",
)
ON_STUCK = ("kill", "continue")
MISSED = ("latest", "all", "skip")
KNOWN = frozenset(spec.name for spec in fields(Settings))


def read_settings(
    get: Callable[[str], object],
    names: Iterable[str],
    namespace: str = "celery",
    further: Callable[[Settings], Iterable[str]] | None = None,
) -> Settings:
    """Return the settings that `get` gives for `highlander_…` keys (None: not set).

    Args:
        get: looks a lower-case key up, such as `app.conf.get`.
        names: all `highlander_…` keys that the user has set, in lower case, to find the unknown ones.
        namespace: the namespace where none is set.
        further: says what else is wrong with settings whose values are each fine.

    Raises:
        ConfigurationError: with every violation, each with the value, and what to do.
    """
    unknown = [_unknown(name) for name in sorted(names) if name.removeprefix(PREFIX) not in KNOWN]
    given = {name: value for name in KNOWN if (value := get(PREFIX + name)) is not None}
    given.setdefault("namespace", namespace)
    problems = _normalise(given)
    if not problems:
        settings = Settings(**given)  # type: ignore[arg-type]  # each value was checked one by one
        problems = [*_contradictions(settings), *(further(settings) if further else ())]
        if not problems and not unknown:
            return settings
    raise ConfigurationError.of([*unknown, *problems])


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name.removeprefix(PREFIX), KNOWN, n=1, cutoff=0.6)
    return f"unknown setting {name!r}" + (f": did you mean {PREFIX + close[0]!r}?" if close else "")


def _normalise(given: dict[str, object]) -> list[str]:  # noqa: C901  # a list of settings, one after the other
    """Bring each value into its type, in place; return what cannot be."""
    problems = []
    for name, value in list(given.items()):
        full = PREFIX + name
        if name in DURATIONS:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _DAY:
                problems.append(f"{full} = {value!r} is not a number of seconds above 0 and below a day")
            else:
                given[name] = float(value)
        elif name in ("migrate", "eligible", "beat", "beat_once"):
            if not isinstance(value, bool):
                problems.append(f"{full} = {value!r} is neither True nor False")
        elif name == "priority":
            if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_PRIORITY:
                problems.append(f"{full} = {value!r} is not a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}")
        elif name == "queues":
            problems += _check_queues(given)
        elif name == "processes":
            problems += _check_processes(given)
        elif name == "queue_concurrency":
            problems += _check_concurrency(value)
        elif name == "beat_missed":
            problems += _check_missed(value)
        elif name == "beat_grace_time":
            problems += _check_grace_time(value)
        elif name == "url":
            problems += check_url(value) if value != "" else []  # as good as not set
        elif not isinstance(value, str):
            problems.append(f"{full} = {value!r} is not a string")
        elif name == "http_address" and value and not is_address(value):
            problems.append(f"{full} = {value!r} is not an address like '127.0.0.1:9808', or ':9808' for all of them")
        elif name == "on_stuck" and value not in ON_STUCK:
            problems.append(f"{full} = {value!r} is neither 'kill' nor 'continue'")
        elif name == "beat_scheduler" and value and not _PATH.fullmatch(value):
            problems.append(
                f"{full} = {value!r} is not a dotted path like 'django_celery_beat.schedulers:DatabaseScheduler'"
            )
        elif name == "namespace" and not _NAMESPACE.fullmatch(value):
            problems.append(f"{full} = {value!r} is not 1 to 28 letters, digits, '_', '.' or '-'")
        elif name == "schema" and value and not _SCHEMA.fullmatch(value):
            problems.append(f"{full} = {value!r} is not a plain lower-case schema name")
    return problems


def _check_queues(given: dict[str, object]) -> list[str]:
    value = given["queues"]
    if isinstance(value, str) or not isinstance(value, Iterable):
        return [f"{PREFIX}queues = {value!r} is not a list of queue names; write [{value!r}]"]
    names = tuple(value)
    given["queues"] = names
    bad = [name for name in names if check_name(name)]
    twice = sorted({name for name in names if names.count(name) > 1 and isinstance(name, str)})
    return [f"{PREFIX}queues: {check_name(name)}" for name in bad] + [
        f"{PREFIX}queues names {name!r} twice" for name in twice
    ]


def _check_processes(given: dict[str, object]) -> list[str]:
    value = given["processes"]
    if not isinstance(value, Mapping):
        return [f"{PREFIX}processes = {value!r} is not a mapping of names to dotted paths 'module:function'"]
    problems = []
    for name, path in value.items():
        if check_name(name):
            problems.append(f"{PREFIX}processes: {check_name(name)}")
        if not isinstance(path, str) or not _PATH.fullmatch(path):
            problems.append(f"{PREFIX}processes[{name!r}] = {path!r} is not a dotted path like 'shop.feeds:price_feed'")
    return problems


def _check_missed(value: object) -> list[str]:
    wanted = value if isinstance(value, Mapping) else {OTHERS: value}
    return [
        f"{PREFIX}beat_missed = {policy!r}{_of_entry(name)} is none of {', '.join(map(repr, MISSED))}"
        for name, policy in wanted.items()
        if policy not in MISSED
    ]


def _check_grace_time(value: object) -> list[str]:
    wanted = value if isinstance(value, Mapping) else {OTHERS: value}
    return [
        f"{PREFIX}beat_grace_time = {seconds!r}{_of_entry(name)} is neither None nor a number of seconds above 0"
        for name, seconds in wanted.items()
        if seconds is not None
        and (isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0)
    ]


def _of_entry(name: object) -> str:
    return "" if name == OTHERS else f" for the entry {name!r}"


def _check_concurrency(value: object) -> list[str]:
    if not isinstance(value, Mapping):
        return [f"{PREFIX}queue_concurrency = {value!r} is not a mapping of queue names to numbers: {{'ledger': 1}}"]
    return [problem for name, number in value.items() if (problem := check_concurrency(name, number))]


def check_concurrency(name: object, number: object) -> str:
    """Return what is wrong with the concurrency of the queue `name`, or the empty string."""
    if isinstance(number, int) and not isinstance(number, bool) and number > 0:
        return ""
    return f"the concurrency {number!r} of the queue {name!r} is not a whole number above 0"


def check_name(name: object) -> str:
    """Return what is wrong with a singleton's name, or the empty string."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return ""
    return f"the name {name!r} is not 1 to 100 letters, digits or any of _ . : @ / + -"


def is_address(value: str) -> bool:
    """Whether this is `host:port` or `:port`."""
    host, separator, port = value.rpartition(":")
    return bool(separator) and port.isdigit() and 0 < int(port) < _PORTS and " " not in host


def check_url(value: object) -> list[str]:
    """Return what is wrong with a database URL, never showing it: it may hold a password."""
    if not isinstance(value, str):
        return [f"{PREFIX}url is of type {type(value).__name__}, not a string like {_EXAMPLE}"]
    scheme, separator, _ = value.partition("://")
    if not separator:
        return [f"{PREFIX}url has no '://'; it should look like {_EXAMPLE}"]
    dialect, _, driver = scheme.partition("+")
    if dialect not in ("postgresql", "postgres"):
        return [f"{PREFIX}url is for {scheme!r}, and the lock is a PostgreSQL one: it should look like {_EXAMPLE}"]
    if dialect == "postgres":
        return [f"{PREFIX}url begins with 'postgres://', which SQLAlchemy does not know; write 'postgresql://'"]
    if driver and driver not in _DRIVERS:
        return [f"{PREFIX}url names the driver {driver!r}; use one of {', '.join(_DRIVERS)}"]
    return []


def _contradictions(settings: Settings) -> list[str]:
    problems = []
    timing = settings.timing
    if timing.needed > timing.lease:
        problems.append(
            f"highlander_lease_duration = {timing.lease:g} is too short: "
            f"heartbeat_interval {timing.heartbeat_interval:g} + heartbeat_timeout {timing.heartbeat_timeout:g} + "
            f"drain_timeout {timing.drain_timeout:g} + kill_margin {timing.kill_margin:g} = {timing.needed:g} "
            "must fit in; lengthen the lease, or shorten those"
        )
    if timing.kill_margin < MINIMUM_KILL_MARGIN:
        problems.append(
            f"highlander_kill_margin = {timing.kill_margin:g} leaves no time to kill what did not stop; "
            f"use {MINIMUM_KILL_MARGIN:g} or more"
        )
    if settings.worker_timeout < timing.heartbeat_interval:
        problems.append(
            f"highlander_worker_timeout = {settings.worker_timeout:g} is shorter than heartbeat_interval = "
            f"{timing.heartbeat_interval:g}: a busy worker would be taken for frozen"
        )
    if settings.url and settings.engine:
        problems.append("highlander_url and highlander_engine are both set; keep one of them")
    both = sorted(set(settings.queues) & set(settings.processes))
    problems += [f"{name!r} is in highlander_queues and in highlander_processes; names are unique" for name in both]
    return problems


def check_names(namespace: str, names: Iterable[str]) -> dict[str, int]:
    """Return the lock key of each name.

    Raises:
        ConfigurationError: two names have one key (a hash collision).
    """
    keys: dict[int, str] = {}
    for name in names:
        other = keys.setdefault(lock_key(namespace, name), name)
        if other != name:
            raise ConfigurationError(f"{name!r} and {other!r} have the same lock key; rename one of them")
    return {name: key for key, name in keys.items()}
