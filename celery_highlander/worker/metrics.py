"""What this node has counted, as Prometheus metrics: in memory, by the link; written out when somebody asks.

Pool children and singleton processes count nothing themselves: their runs and ticks pass through the keeper, which
tells the worker's main process. So there is one place to ask, whatever the pool is; processes share nothing.
"""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from celery_highlander.clock import boot_time
from celery_highlander.worker import native

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Labels = tuple[tuple[str, str], ...]
Kind = Literal["counter", "gauge", "histogram"]

PREFIX = "celery_highlander_"

HEARTBEAT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
TAKEOVER_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LATENESS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0, 300.0)

REASONS = (
    ("worker", "shutdown"),
    ("beat shutting", "shutdown"),
    ("step-down", "operator"),
    ("pause", "operator"),
    ("drain", "operator"),
    ("spread", "placement"),
    ("another node", "placement"),
    ("no broker", "broker"),
    ("main loop", "hung"),
    ("no progress", "hung"),
    ("its process", "failed"),
    ("keeper", "keeper"),
    ("the link", "keeper"),
    ("nonsense", "keeper"),
    ("lease", "lease"),
    ("no answer", "database"),
)
"""How the reason of a transition begins, and its class."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, by its name without the prefix."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS = (
    Metric("is_leader", "gauge", "1 if this node leads the singleton, else 0.", ("singleton",)),
    Metric("healthy", "gauge", "1 if this node does well, as at /healthz, else 0."),
    Metric("session_open", "gauge", "1 if this node's lock session is open, else 0."),
    Metric("paused", "gauge", "1 if this node must not lead it: paused, or the node drained, else 0.", ("singleton",)),
    Metric("lease_seconds", "gauge", "The setting highlander_lease_duration."),
    Metric(
        "lease_left_seconds",
        "gauge",
        "Seconds for which what this node leads may act without a further heartbeat; absent where it leads nothing.",
    ),
    Metric(
        "leader_silent_seconds",
        "gauge",
        "Seconds since this standby saw the last new heartbeat of the leader; absent where it cannot see any.",
        ("singleton",),
    ),
    Metric(
        "transitions_total",
        "counter",
        "How often this node was elected, stepped down, or lost it, by the class of the reason.",
        ("singleton", "to", "reason"),
    ),
    Metric("leading_seconds_total", "counter", "Seconds for which this node has led the singleton.", ("singleton",)),
    Metric(
        "takeover_seconds",
        "histogram",
        "Seconds from getting the lock to acting: what a new leader waits for its predecessor.",
        ("singleton",),
        TAKEOVER_BUCKETS,
    ),
    Metric("heartbeat_seconds", "histogram", "Seconds that a heartbeat took to be answered.", (), HEARTBEAT_BUCKETS),
    Metric("database_errors_total", "counter", "Lock sessions that were lost, or could not be opened.", ("kind",)),
    Metric(
        "failures_total", "counter", "How often a singleton process was handed on, since it failed.", ("singleton",)
    ),
    Metric("ticks_sent_total", "counter", "Ticks of the beat that this node has published."),
    Metric("ticks_skipped_total", "counter", "Missed ticks that this node has skipped, as the policy says."),
    Metric(
        "tick_lateness_seconds", "histogram", "Seconds from when a tick was due to its message.", (), LATENESS_BUCKETS
    ),
    Metric(
        "runs_total",
        "counter",
        "Runs of singleton tasks that asked for their key, by the answer: held (they ran), busy (a conflict), "
        "unavailable (no database), refused.",
        ("answer",),
    ),
    Metric("run_wait_seconds_total", "counter", "Seconds that runs of singleton tasks have waited for their key."),
)
BY_NAME = {metric.name: metric for metric in METRICS}

ANSWERS = ("held", "busy", "unavailable", "refused")
ERRORS = ("lost", "refused")


_USUAL = {"elected": "elected", "lost": "database", "stepped_down": "shutdown"}


def reason_class(reason: str) -> str:
    """Return the class of a reason, one of a few words."""
    return next((name for beginning, name in REASONS if reason.startswith(beginning)), "database")


@dataclass(slots=True)
class Histogram:
    """Counts by bucket."""

    buckets: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def observe(self, value: float) -> None:
        """Take in one value."""
        if not self.counts:
            self.counts = [0] * (len(self.buckets) + 1)
        self.counts[bisect.bisect_left(self.buckets, value)] += 1
        self.sum += value


@dataclass(frozen=True, slots=True)
class Family:
    """A metric with its samples: each a suffix of the name, labels and a value."""

    metric: Metric
    samples: list[tuple[str, Labels, float]]


class Metrics:
    """The counts of one node. Written by the link's thread, read by any.

    Args:
        singletons: the names.
        lease: the lease's duration.
    """

    def __init__(self, singletons: Iterable[str], lease: float = 0.0) -> None:
        self._singletons = tuple(singletons)
        self._lease = lease
        self._lock = native.lock()
        self._counters: Counter[tuple[str, Labels]] = Counter()
        self._histograms: dict[tuple[str, Labels], Histogram] = {}
        self._leading_since: dict[str, float] = {}
        self._granted_at: dict[str, float] = {}
        self._sightings: Mapping[str, float] = {}
        self._forbidden: frozenset[str] = frozenset()
        self._begin()

    def _begin(self) -> None:
        """Begin at 0 whatever can be known beforehand: Prometheus sees no rise of what appears as 1."""
        for name in self._singletons:
            for to in ("elected", "lost", "stepped_down"):
                self.count("transitions_total", 0.0, singleton=name, to=to, reason=_USUAL[to])
            self.count("failures_total", 0.0, singleton=name)
            self.count("leading_seconds_total", 0.0, singleton=name)
        for answer in ANSWERS:
            self.count("runs_total", 0.0, answer=answer)
        for kind in ERRORS:
            self.count("database_errors_total", 0.0, kind=kind)

    # -- writing -------------------------------------------------------------------------------------------------------

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._counters[name, tuple(labels.items())] += amount  # type: ignore[assignment]  # floats add up as well

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put a value into a histogram."""
        key = name, tuple(labels.items())
        with self._lock:
            if key not in self._histograms:
                self._histograms[key] = Histogram(BY_NAME[name].buckets)
            self._histograms[key].observe(value)

    def take(self, counts: Mapping[str, float], values: Mapping[str, Iterable[float]]) -> None:
        """Take in what another process of the node has counted: `name` or `name:label value`, and values."""
        for key, amount in counts.items():
            name, _, value = key.partition(":")
            metric = BY_NAME.get(name)
            if metric is not None and len(metric.labels) == bool(value):
                self.count(name, amount, **({metric.labels[0]: value} if value else {}))
        for name, observed in values.items():
            if name in BY_NAME and BY_NAME[name].kind == "histogram":
                for one in observed:
                    self.observe(name, one)

    def phase(self, name: str, phase: str) -> None:
        """A contest has come to a phase."""
        now = boot_time()
        if phase == "beginning":
            self._granted_at[name] = now
        elif phase == "leading":
            granted_at = self._granted_at.pop(name, None)
            if granted_at is not None:
                self.observe("takeover_seconds", now - granted_at, singleton=name)

    def elected(self, name: str) -> None:
        """This node has begun to lead."""
        self._leading_since[name] = boot_time()
        self.count("transitions_total", singleton=name, to="elected", reason="elected")

    def ended(self, name: str, reason: str, *, lost: bool) -> None:
        """It leads no more."""
        since = self._leading_since.pop(name, None)
        if since is not None:
            self.count("leading_seconds_total", boot_time() - since, singleton=name)
        self.count(
            "transitions_total", singleton=name, to="lost" if lost else "stepped_down", reason=reason_class(reason)
        )

    def see(self, sightings: Mapping[str, float], forbidden: Iterable[str]) -> None:
        """Take in what the keeper has seen of others: when it saw their last heartbeats, and what it must not lead."""
        self._sightings, self._forbidden = sightings, frozenset(forbidden)

    # -- reading -------------------------------------------------------------------------------------------------------

    def families(
        self,
        *,
        connected: bool,
        leading: Iterable[str],
        paused: Iterable[str],
        deadline: float,
        healthy: bool = True,
    ) -> list[Family]:
        """Return everything as it is now.

        Args:
            connected: whether the lock session is open.
            leading: what this node leads.
            paused: what it was told by remote control not to lead.
            deadline: until when it may act, on the boot-time clock; 0 where it leads nothing.
            healthy: whether the node does well.
        """
        now = boot_time()
        with self._lock:
            counters = dict(self._counters)
            histograms = {
                key: Histogram(found.buckets, list(found.counts), found.sum) for key, found in self._histograms.items()
            }
        for name, since in list(self._leading_since.items()):
            key = "leading_seconds_total", (("singleton", name),)
            counters[key] = counters.get(key, 0) + now - since  # type: ignore[assignment]  # as above
        gauges: dict[tuple[str, Labels], float] = {
            ("healthy", ()): float(healthy),
            ("session_open", ()): float(connected),
            ("lease_seconds", ()): self._lease,
        }
        held, kept = set(leading), {*paused, *self._forbidden}
        for name, seen_at in self._sightings.items():
            gauges["leader_silent_seconds", (("singleton", name),)] = max(0.0, now - seen_at)
        for name in self._singletons:
            gauges["is_leader", (("singleton", name),)] = float(name in held)
            gauges["paused", (("singleton", name),)] = float(name in kept)
        if deadline:
            gauges["lease_left_seconds", ()] = max(0.0, deadline - now)
        plain = {**counters, **gauges}
        families = []
        for metric in METRICS:
            if metric.kind == "histogram":
                own = {labels: found for (name, labels), found in histograms.items() if name == metric.name}
                samples = [sample for labels, found in own.items() for sample in _of_histogram(labels, found)]
            else:
                samples = [("", labels, value) for (name, labels), value in plain.items() if name == metric.name]
            if not samples and not metric.labels and metric.kind == "counter":
                samples = [("", (), 0.0)]
            families.append(Family(metric, samples))
        return families


def _of_histogram(labels: Labels, found: Histogram) -> list[tuple[str, Labels, float]]:
    samples: list[tuple[str, Labels, float]] = []
    total = 0
    for limit, count in zip([*found.buckets, float("inf")], found.counts, strict=True):
        total += count
        samples.append(("_bucket", (*labels, ("le", "+Inf" if limit == float("inf") else f"{limit:g}")), total))
    return [*samples, ("_sum", labels, found.sum), ("_count", labels, total)]


def render(families: Iterable[Family]) -> str:
    """Return the text that Prometheus scrapes (its text-based exposition format, version 0.0.4)."""
    lines = []
    for family in families:
        name = PREFIX + family.metric.name
        lines += [f"# HELP {name} {family.metric.text}", f"# TYPE {name} {family.metric.kind}"]
        for suffix, labels, value in family.samples:
            shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
            lines.append(f"{name}{suffix}{{{shown}}} {value:.9g}" if shown else f"{name}{suffix} {value:.9g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
