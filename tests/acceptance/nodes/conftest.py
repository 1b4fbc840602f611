"""A cluster of three workers for pytest-celery's `celery_setup`, on each platform that there is.

pytest-celery is not loaded as a plugin (pyproject.toml): other tests need none of it. Its fixtures are named here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryTestWorker,
    CeleryWorkerCluster,
    celery_backend_cluster_config,
    celery_broker_cluster_config,
    celery_setup,
    celery_setup_cls,
    celery_setup_config,
    celery_setup_name,
    celery_worker_cluster_config,
    default_pytest_celery_network,
)
from pytest_docker_tools.plugin import docker_client

from celery_highlander import Highlander
from tests.acceptance.nodes import docker
from tests.acceptance.nodes.docker import (
    docker_database,
    docker_database_image,
    docker_image,
    docker_redis,
    docker_redis_image,
    docker_worker_1,
    docker_worker_2,
    docker_worker_3,
    docker_worker_env,
    docker_worker_volumes,
)
from tests.acceptance.nodes.local import LocalService, LocalWorker
from tests.arena.cluster import TIMELY, Cluster
from tests.faults.conftest import empty, lead_once
from tests.faults.scenes import PROCESS, QUEUE, QUIET

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.arena.servers import Database, Redis

__all__ = [
    "celery_backend_cluster_config",
    "celery_broker_cluster_config",
    "celery_setup",
    "celery_setup_cls",
    "celery_setup_config",
    "celery_setup_name",
    "celery_worker_cluster_config",
    "default_pytest_celery_network",
    "docker_client",
    "docker_database",
    "docker_database_image",
    "docker_image",
    "docker_redis",
    "docker_redis_image",
    "docker_worker_1",
    "docker_worker_2",
    "docker_worker_3",
    "docker_worker_env",
    "docker_worker_volumes",
]

NODES = 3
OPTIONS = (*QUIET, "-X", QUEUE)
SHOP: dict[str, Any] = {
    **TIMELY,
    "highlander_beat": True,
    "highlander_processes": {PROCESS: "tests.arena.shop:ticker"},
    "beat_schedule": {"tick": {"task": "tests.arena.shop.ordinary", "schedule": 1.0, "args": [7]}},
}


@dataclass(frozen=True, slots=True)
class Platform:
    """Where the nodes run; URLs as this process and as a worker see them."""

    name: str
    database: str
    journals: Path


@functools.cache
def _absent() -> str | None:
    return docker.reason_without()


@pytest.fixture(params=["local", "docker"])
def platform(request: pytest.FixtureRequest, tmp_path: Path) -> Platform:
    if request.param == "docker":
        reason = _absent()
        if reason is not None:
            pytest.skip(reason)
        url = docker.database_url(request.getfixturevalue("docker_database"))
    else:
        database: Database = request.getfixturevalue("postgres")
        url = database.url()
    lead_once(url, [QUEUE, PROCESS, "beat"])
    journals = tmp_path / "journals"
    journals.mkdir(exist_ok=True)
    return Platform(request.param, url, journals)


@pytest.fixture
def celery_broker_cluster(request: pytest.FixtureRequest, platform: Platform) -> Iterator[CeleryBrokerCluster]:
    if platform.name == "docker":
        yield CeleryBrokerCluster(CeleryTestBroker(request.getfixturevalue("docker_redis")))
        return
    server: Redis = request.getfixturevalue("redis_server")
    yield CeleryBrokerCluster(CeleryTestBroker(LocalService("redis", server.url())))
    empty(server)


@pytest.fixture
def celery_backend_cluster(request: pytest.FixtureRequest, platform: Platform) -> CeleryBackendCluster:
    if platform.name == "docker":
        return CeleryBackendCluster(CeleryTestBackend(request.getfixturevalue("docker_redis")))
    server: Redis = request.getfixturevalue("redis_server")
    return CeleryBackendCluster(CeleryTestBackend(LocalService("redis", server.url(db=1))))


@pytest.fixture
def celery_setup_app(platform: Platform, celery_setup_config: dict[str, Any]) -> Iterator[Celery]:
    app = Celery("shop", set_as_current=False)
    app.config_from_object(celery_setup_config)
    app.conf.update(SHOP, highlander_url=platform.database, broker_connection_retry_on_startup=True)
    Highlander(app)
    yield app
    app.close()


@pytest.fixture
def celery_worker_cluster(
    request: pytest.FixtureRequest, platform: Platform, tmp_path: Path, celery_setup_app: Celery
) -> Iterator[CeleryWorkerCluster]:
    if platform.name == "docker":
        containers = [request.getfixturevalue(name) for name in docker.WORKERS]
        yield CeleryWorkerCluster(*(CeleryTestWorker(one, celery_setup_app) for one in containers))
        return
    conf = celery_setup_app.conf
    urls = {"broker_url": conf.broker_url, "result_backend": conf.result_backend}
    with Cluster(platform.database, urls, tmp_path, SHOP) as cluster:
        workers = [CeleryTestWorker(LocalWorker(cluster, OPTIONS), celery_setup_app) for _ in range(NODES)]
        made = CeleryWorkerCluster(*workers)
        assert made.ready()
        yield made
        for worker in workers:
            worker.teardown()
