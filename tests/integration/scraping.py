"""Asks workers over HTTP, as probes and Prometheus do."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from celery_highlander.worker.metrics import PREFIX


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def scrape(port: int) -> dict[tuple[str, str], float]:
    """The samples of a worker: (name without the prefix, label values) to value."""
    status, text = get(port, "/metrics")
    assert status == 200
    return samples(text)


def samples(text: str) -> dict[tuple[str, str], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(value for label, value in sorted(sample.labels.items()) if label != "le")
            if not sample.name.endswith("_bucket"):
                found[sample.name.removeprefix(PREFIX), labels] = sample.value
    return found


def health(port: int) -> tuple[int, dict[str, Any]]:
    status, text = get(port, "/healthz")
    return status, json.loads(text)
