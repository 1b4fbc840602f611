"""What `example_project/deploy` says to Kubernetes, Docker and systemd: that it fits together, and fits the plugin."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from celery_highlander.config import Settings
from celery_highlander.worker.http import parse_address
from tests.arena.cluster import ROOT
from tests.arena.waiting import wait_until

if TYPE_CHECKING:
    from tests.acceptance.conftest import MakeApplication

DEPLOY = ROOT / "example_project/deploy"
LIMIT = 60.0
FINISHING = Settings().drain_timeout + Settings().kill_margin
"""Seconds that a worker may need to stop what it leads."""
WORKER = ["celery", "-A", "example_project.shop", "worker", "-X", "highlander"]


def documents(name: str) -> dict[str, Any]:
    """The documents of a manifest, by their kinds."""
    return {document.get("kind", ""): document for document in yaml.safe_load_all((DEPLOY / name).read_text())}


@pytest.fixture
def pod() -> Any:
    return documents("kubernetes.yaml")["Deployment"]["spec"]["template"]["spec"]


def seconds(value: str) -> int:
    return int(value.removesuffix("s"))


# -- Kubernetes --------------------------------------------------------------------------------------------------------


def test_a_pod_gets_the_time_that_a_worker_needs_to_hand_over(pod: Any) -> None:
    assert pod["terminationGracePeriodSeconds"] > 10 * FINISHING
    assert "lifecycle" not in pod["containers"][0]  # a hook before SIGTERM would delay what SIGTERM does
    assert pod["containers"][0]["command"][: len(WORKER)] == WORKER  # no shell in between


def test_an_update_and_a_node_drain_leave_standbys() -> None:
    found = documents("kubernetes.yaml")
    deployment, budget = found["Deployment"]["spec"], found["PodDisruptionBudget"]["spec"]
    assert deployment["strategy"]["type"] == "RollingUpdate"
    gone = deployment["strategy"]["rollingUpdate"]["maxUnavailable"]
    assert deployment["replicas"] - max(gone, budget["maxUnavailable"]) >= 2
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert budget["selector"]["matchLabels"] == labels
    (spread,) = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels


def test_each_reference_in_a_pod_has_its_target(pod: Any) -> None:
    (container,) = pod["containers"]
    environment = {entry["name"]: entry for entry in container["env"]}
    assert {"POD_NAME", "SHOP_DATABASE_URL", "SHOP_BROKER_URL", "SHOP_SETTINGS"} == set(environment)
    for name in re.findall(r"\$\((\w+)\)", " ".join(container["command"])):
        assert name in environment
    address = json.loads(environment["SHOP_SETTINGS"]["value"])["highlander_http_address"]
    (port,) = container["ports"]
    assert parse_address(address) == ("", port["containerPort"])
    assert container["livenessProbe"]["httpGet"]["port"] == port["name"]
    annotations = documents("kubernetes.yaml")["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])


def test_a_pod_has_the_time_to_start_before_it_is_taken_for_dead(pod: Any) -> None:
    startup, liveness = (pod["containers"][0][name] for name in ("startupProbe", "livenessProbe"))
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 60
    assert startup["timeoutSeconds"] >= 5  # the command imports the application
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > Settings().lease_duration


@pytest.mark.slow
@pytest.mark.postgres
def test_the_probes_succeed_at_a_leader_and_at_a_standby_and_fail_without_a_keeper(
    application: MakeApplication, pod: Any
) -> None:
    startup, liveness = (pod["containers"][0][name] for name in ("startupProbe", "livenessProbe"))
    (compose,) = documents("compose.yaml").values()
    assert compose["services"]["worker-1"]["healthcheck"]["test"] == ["CMD", *startup["exec"]["command"]]
    shop = application("example_project.shop")
    shop.serve(2)
    wait_until(lambda: len(shop.acting()) == 3, LIMIT, "everything to be led")
    program, *words = startup["exec"]["command"]
    assert program == "celery"
    for port in shop.ports:
        assert "well" in shop.run([sys.executable, "-m", "celery", *words], env=shop.listening(port))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{liveness['httpGet']['path']}", timeout=10) as answer:
            assert answer.status == 200

    os.kill(shop.workers[0].keeper, signal.SIGSTOP)
    argv, environment = [sys.executable, "-m", "celery", *words], shop.environment(env=shop.listening(shop.ports[0]))
    wait_until(
        lambda: subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, check=False).returncode != 0,
        LIMIT,
        "the probe to fail",
    )


# -- Docker ------------------------------------------------------------------------------------------------------------


def test_the_compose_file_has_three_workers_and_all_that_they_need() -> None:
    services = documents("compose.yaml")[""]["services"]
    workers = [f"worker-{number}" for number in (1, 2, 3)]
    assert {"postgres", "rabbitmq", "flower", "prometheus", *workers} == set(services)
    for name in workers:
        assert seconds(services[name]["stop_grace_period"]) > 10 * FINISHING
        assert services[name]["healthcheck"]["test"][0] == "CMD"
        for needed, how in services[name]["depends_on"].items():
            assert how == {"condition": "service_healthy"}
            assert services[needed]["healthcheck"]["test"][0] == "CMD"
        assert "@postgres/" in services[name]["environment"]["SHOP_DATABASE_URL"]
        assert "@rabbitmq/" in services[name]["environment"]["SHOP_BROKER_URL"]


def test_prometheus_scrapes_each_worker_where_it_answers_and_reads_the_alerts() -> None:
    services = documents("compose.yaml")[""]["services"]
    (job,) = documents("prometheus.yaml")[""]["scrape_configs"]
    (static,) = job["static_configs"]
    settings = json.loads(services["worker-1"]["environment"]["SHOP_SETTINGS"])
    _, port = parse_address(settings["highlander_http_address"])
    assert static["targets"] == [f"worker-{number}:{port}" for number in (1, 2, 3)]
    mounted = {Path(volume.split(":")[1]).name: volume.split(":")[0] for volume in services["prometheus"]["volumes"]}
    for rules in documents("prometheus.yaml")[""]["rule_files"]:
        assert (DEPLOY / mounted[rules]).is_file()


def test_the_image_is_built_from_all_that_it_needs() -> None:
    build = documents("compose.yaml")[""]["services"]["worker-1"]["build"]
    context = DEPLOY / build["context"]
    assert (context / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    taken = re.findall(r"^!(\S+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert all((context / name).exists() for name in taken)
    # What the build of a wheel reads, and what runs.
    assert {"celery_highlander", "example_project", "pyproject.toml", "README.md", "LICENSE"} <= set(taken)
    (command,) = re.findall(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert json.loads(command)[: len(WORKER)] == WORKER


# -- systemd -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shop-worker.service", "shop-beat.service"])
def test_a_unit_signals_the_main_process_alone_gives_it_time_and_comes_back(name: str, tmp_path: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd minds the case
    unit.read(DEPLOY / name)
    service = unit["Service"]
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) > 10 * FINISHING
    assert (service["Restart"], unit["Unit"]["StartLimitIntervalSec"]) == ("always", "0")
    if shutil.which("systemd-analyze") is not None:
        installed = tmp_path / name  # as if the application were there
        installed.write_text((DEPLOY / name).read_text().replace("/srv/shop/.venv/bin/celery", sys.executable))
        argv = ["systemd-analyze", "verify", "--man=no", str(installed)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
