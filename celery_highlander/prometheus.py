"""The metrics of this node for the application's own registry: the extra `prometheus`.

Where the worker already serves metrics with `prometheus_client`, register the collector in its main process; nothing
else has to listen then:

>>> from celery.signals import worker_init
>>> from prometheus_client import REGISTRY
>>> @worker_init.connect
... def register(**kwargs):
...     REGISTRY.register(HighlanderCollector(app))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from celery_highlander.worker.highlander import Highlander
from celery_highlander.worker.http import families_of
from celery_highlander.worker.metrics import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from celery_highlander.worker.metrics import Family

_KINDS = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}


class HighlanderCollector(Collector):
    """Collects the metrics of the worker that this process is; of any other process there are none.

    Args:
        app: the app in which the plugin is installed.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app

    def collect(self) -> Iterator[Metric]:
        """Return the metrics as they are now."""
        plugin = Highlander.of(self._app)
        if plugin is None or plugin.link is None:
            return
        for family in families_of(plugin.link):
            yield _converted(family)


def _converted(family: Family) -> Metric:
    name = PREFIX + family.metric.name
    made: Metric = _KINDS[family.metric.kind](name, family.metric.text)
    base = name if family.metric.kind != "counter" else name.removesuffix("_total")
    for suffix, labels, value in family.samples:
        full = base + ("_total" if family.metric.kind == "counter" else suffix)
        made.add_sample(full, dict(labels), value)
    return made
