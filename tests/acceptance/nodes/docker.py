"""The nodes in containers: an image of this very source, PostgreSQL and Redis; only where there is a Docker engine."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import pytest
from docker.errors import DockerException
from pytest_celery import CeleryTestContainer, RedisContainer
from pytest_docker_tools import build, container, fetch, fxtr

if TYPE_CHECKING:
    from tests.acceptance.nodes.conftest import Platform

ROOT = Path(__file__).resolve().parents[3]
NETWORK = "{default_pytest_celery_network.name}"
JOURNALS = "/journals"


class DatabaseContainer(CeleryTestContainer):
    """PostgreSQL."""

    ready_prompt = "PostgreSQL init process complete; ready for start up."


class WorkerContainer(CeleryTestContainer):
    """A worker of the arena's shop."""

    ready_prompt = " ready."

    def worker_name(self) -> str:
        """The part of the node name before the host."""
        return "worker"


def reason_without() -> str | None:
    """Why there are no containers to test with, or None."""
    try:
        with contextlib.closing(docker.from_env(timeout=5)) as client:
            client.ping()
    except DockerException as error:
        return f"no Docker engine: {error}"
    return None


def database_url(database: DatabaseContainer) -> str:
    """The URL for this process."""
    host, port = database.get_addr("5432/tcp")
    return f"postgresql+psycopg2://postgres@{host}:{port}/postgres"


docker_database_image = fetch(repository="postgres:18")
docker_redis_image = fetch(repository="redis:7")
docker_database = container(
    image="{docker_database_image.id}",
    network=NETWORK,
    ports={"5432/tcp": None},
    environment={"POSTGRES_HOST_AUTH_METHOD": "trust"},
    wrapper_class=DatabaseContainer,
    timeout=120,
)
docker_redis = container(
    image="{docker_redis_image.id}", network=NETWORK, ports={"6379/tcp": None}, wrapper_class=RedisContainer, timeout=60
)
docker_image = build(path=str(ROOT), dockerfile="tests/acceptance/nodes/Dockerfile", tag="celery-highlander-acceptance")


@pytest.fixture
def docker_worker_env(
    docker_database: DatabaseContainer, celery_setup_config: dict[str, Any], platform: Platform
) -> dict[str, str]:
    """The environment of a worker, with the addresses of the containers' own network."""
    from tests.acceptance.nodes.conftest import SHOP

    platform.journals.chmod(0o777)
    conf = {
        **SHOP,
        "broker_url": celery_setup_config["broker_url"],
        "result_backend": celery_setup_config["result_backend"],
        "highlander_url": f"postgresql+psycopg2://postgres@{docker_database.name}:5432/postgres",
    }
    return {"HIGHLANDER_ARENA_CONF": json.dumps(conf), "HIGHLANDER_ARENA_JOURNALS": JOURNALS}


@pytest.fixture
def docker_worker_volumes(platform: Platform) -> dict[str, dict[str, str]]:
    """Where a worker writes its journals."""
    return {str(platform.journals): {"bind": JOURNALS, "mode": "rw"}}


def _worker() -> Any:
    return container(
        image="{docker_image.id}",
        network=NETWORK,
        environment=fxtr("docker_worker_env"),
        volumes=fxtr("docker_worker_volumes"),
        wrapper_class=WorkerContainer,
        timeout=120,
    )


docker_worker_1 = _worker()
docker_worker_2 = _worker()
docker_worker_3 = _worker()
WORKERS = ("docker_worker_1", "docker_worker_2", "docker_worker_3")
