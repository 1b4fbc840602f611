"""A Prometheus server that scrapes workers several times a second; it knows no particular metric."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from tests.arena.lifecycle import Server, find_binary, is_hidden
from tests.arena.processes import ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INTERVAL = "500ms"
"""From one scrape, and one evaluation of the rules, to the next one."""


class Prometheus(Server):
    """A Prometheus.

    Args:
        jobs: Ports on the loopback to scrape, by job.
        rules: The content of a rule file.
    """

    purpose: ClassVar[str] = "prometheus"

    def __init__(self, jobs: Mapping[str, Sequence[int]], rules: Mapping[str, Any]) -> None:
        super().__init__()
        self._rules = self.directory / "rules.yaml"
        self._rules.write_text(yaml.safe_dump(rules))
        self._conf = self.directory / "prometheus.yaml"
        scrapes = [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
            for job, ports in jobs.items()
        ]
        intervals = {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL}
        conf = {"global": intervals, "rule_files": [str(self._rules)], "scrape_configs": scrapes}
        self._conf.write_text(yaml.safe_dump(conf))

    @classmethod
    def available(cls) -> str | None:
        """Why it cannot be started here, or None."""
        return None if find_binary("prometheus") and not is_hidden("prometheus") else "prometheus is not installed"

    def firing(self) -> set[tuple[str, str]]:
        """The alerts that fire now: name, and singleton or instance (empty where it has neither)."""
        alerts = self._get("alerts")["alerts"]
        return {
            (alert["labels"]["alertname"], alert["labels"].get("singleton") or alert["labels"].get("instance", ""))
            for alert in alerts
            if alert["state"] == "firing"
        }

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Evaluate an expression now; labels and value of each series.

        Raises:
            ServerError: it is no expression.
        """
        found = self._get("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ServerError(f"{path}: {error.read().decode()}") from error

    def _argv(self) -> Sequence[str]:
        program = find_binary("prometheus")
        if program is None:
            raise ServerError(self.available() or "")
        return [
            str(program),
            f"--config.file={self._conf}",
            f"--storage.tsdb.path={self.directory}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        ]

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
