"""The settings: each value is checked, all violations are told at once, and nothing of a URL is ever shown."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_highlander import config
from celery_highlander.config import DURATIONS, PREFIX, Settings, check_name, check_names, check_url, read_settings
from celery_highlander.errors import ConfigurationError

URL = "postgresql+psycopg2://app:s3cret@db/shop"


def read(**values: Any) -> Settings:
    given = {PREFIX + name: value for name, value in values.items()}
    return read_settings(given.get, given)


def problems(**values: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(**values)
    assert caught.value.code == "configuration"
    assert "s3cret" not in f"{caught.value!s} {caught.value!r}"
    return caught.value.message


def test_the_defaults_fit_together() -> None:
    settings = read()
    assert settings == Settings()
    assert settings.queues == ("highlander",)
    assert settings.timing.needed <= settings.lease_duration
    assert settings.eligible


def test_every_setting_is_read() -> None:
    values: dict[str, Any] = {
        "url": URL,
        "engine": "",
        "namespace": "bank",
        "schema": "elections",
        "migrate": False,
        "queues": ["ledger", "mail"],
        "processes": {"feed": "shop.feeds:price_feed"},
        "lease_duration": 9,
        "heartbeat_interval": 1.5,
        "heartbeat_timeout": 2.5,
        "drain_timeout": 3.5,
        "kill_margin": 0.25,
        "poll_interval": 0.75,
        "worker_timeout": 4,
        "broker_timeout": 20,
        "progress_timeout": 60,
        "on_stuck": "continue",
        "queue_concurrency": {"ledger": 1},
        "beat": True,
        "beat_scheduler": "celery.beat:PersistentScheduler",
        "beat_missed": {"*": "latest", "close-the-books": "all"},
        "beat_grace_time": {"close-the-books": 3600},
        "beat_once": False,
        "eligible": False,
        "priority": -5,
        "http_address": "127.0.0.1:9808",
    }
    assert set(values) == {spec.name for spec in fields(Settings)}, "a setting is not tested here"
    settings = read(**values)
    assert {name: getattr(settings, name) for name in values} == {**values, "queues": ("ledger", "mail")}
    assert settings.timing.lease == 9.0


def test_a_setting_of_none_counts_as_not_set() -> None:
    assert read(lease_duration=None, url=None) == Settings()


def test_the_apps_name_is_the_namespace_where_none_is_set() -> None:
    assert read_settings(lambda _: None, (), namespace="shop").namespace == "shop"
    given = {"highlander_namespace": "bank"}
    assert read_settings(given.get, given, namespace="shop").namespace == "bank"


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("value", [0, -1, True, "5", float("nan"), float("inf"), 86400, [1]])
def test_a_duration_is_a_number_of_seconds(name: str, value: object) -> None:
    assert (
        problems(**{name: value}) == f"highlander_{name} = {value!r} is not a number of seconds above 0 and below a day"
    )


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("migrate", "yes", "neither True nor False"),
        ("beat_once", "no", "neither True nor False"),
        ("eligible", 1, "neither True nor False"),
        ("priority", 1000, "not a whole number from -999 to 999"),
        ("priority", -1000, "not a whole number from -999 to 999"),
        ("priority", 1.5, "not a whole number from -999 to 999"),
        ("priority", True, "not a whole number from -999 to 999"),
        ("queues", "ledger", r"is not a list of queue names; write ['ledger']"),
        ("queues", 5, "is not a list of queue names"),
        ("queues", ["a b"], "the name 'a b' is not 1 to 100 letters"),
        ("queues", [""], "the name '' is not 1 to 100 letters"),
        ("queues", [5], "the name 5 is not 1 to 100 letters"),
        ("queues", ["a", "b", "a"], "names 'a' twice"),
        ("processes", ["shop:feed"], "is not a mapping of names to dotted paths"),
        ("processes", {"a b": "shop:feed"}, "the name 'a b'"),
        ("processes", {"feed": "feed"}, "'feed' is not a dotted path like"),
        ("processes", {"feed": print}, "is not a dotted path like"),
        ("namespace", "a b", "is not 1 to 28 letters"),
        ("namespace", "n" * 29, "is not 1 to 28 letters"),
        ("namespace", 5, "is not a string"),
        ("schema", 'x"; drop table', "is not a plain lower-case schema name"),
        ("schema", "Shop", "is not a plain lower-case schema name"),
        ("engine", 5, "is not a string"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_what_it_should_be(name: str, value: object, told: str) -> None:
    assert f"highlander_{name}" in problems(**{name: value})
    assert told in problems(**{name: value})


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("app:s3cret@db/shop", "has no '://'"),
        ("mysql://app:s3cret@db/shop", "is for 'mysql', and the lock is a PostgreSQL one"),
        ("sqlite:///s3cret.db", "is for 'sqlite'"),
        ("postgres://app:s3cret@db/shop", "write 'postgresql://'"),
        ("postgresql+asyncpg://app:s3cret@db/shop", "names the driver 'asyncpg'; use one of psycopg2, psycopg"),
        (5, "is of type int"),
        (b"postgresql://app:s3cret@db", "is of type bytes"),
    ],
)
def test_a_url_that_cannot_be_is_described_and_not_shown(url: object, told: str) -> None:
    assert told in problems(url=url)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2", "postgresql+psycopg"])
def test_both_drivers_are_known(scheme: str) -> None:
    assert check_url(f"{scheme}://app@db/shop") == []


@given(st.text())
def test_no_part_of_a_url_but_its_scheme_is_told(text: str) -> None:
    told = " ".join(check_url(f"{text}nonsense://app:s3cret@db"))
    assert "s3cret" not in told


def test_an_unknown_setting_is_an_error_with_a_suggestion() -> None:
    assert problems(lease_duraton=5) == (
        "unknown setting 'highlander_lease_duraton': did you mean 'highlander_lease_duration'?"
    )
    assert problems(xyzzy=5) == "unknown setting 'highlander_xyzzy'"


def test_a_lease_has_to_hold_all_that_must_happen_within_it() -> None:
    told = problems(lease_duration=5.4)
    assert "highlander_lease_duration = 5.4 is too short" in told
    assert "heartbeat_interval 1 + heartbeat_timeout 2 + drain_timeout 2 + kill_margin 0.5 = 5.5" in told
    assert read(lease_duration=5.5).lease_duration == 5.5


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"kill_margin": 0.04}, "leaves no time to kill what did not stop; use 0.05 or more"),
        ({"worker_timeout": 0.9}, "a busy worker would be taken for frozen"),
        ({"url": URL, "engine": "shop:engine"}, "are both set; keep one of them"),
        ({"queues": ["a"], "processes": {"a": "shop:feed"}}, "'a' is in highlander_queues and in highlander_processes"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], told: str) -> None:
    assert told in problems(**values)


def test_every_violation_is_told_at_once() -> None:
    told = problems(lease_duration=1, kill_margin=0.01, worker_timeout=0.1, colour="blue", url=URL, engine="a:b")
    assert told.startswith("5 settings do not fit:\n  - ")
    for part in ("colour", "lease_duration", "kill_margin", "worker_timeout", "both set"):
        assert part in told
    told = problems(lease_duration="long", priority="high", queues="ledger", size=1)
    assert told.startswith("4 settings do not fit:")


def test_what_the_code_declares_is_checked_with_the_settings() -> None:
    given: dict[str, object] = {"highlander_colour": "blue"}
    with pytest.raises(ConfigurationError, match="2 settings do not fit") as caught:
        read_settings(given.get, given, further=lambda settings: [f"no {settings.namespace}"])
    assert "no celery" in caught.value.message


def test_the_url_does_not_show_in_the_settings() -> None:
    settings = read(url=URL)
    assert "s3cret" not in f"{settings!r} {settings!s}"


@pytest.mark.parametrize("name", ["a", "price_feed", "shop.feeds:price-feed@eu/1+2", "x" * 100])
def test_a_name_may_be_what_celery_and_postgresql_take(name: str) -> None:
    assert check_name(name) == ""


@pytest.mark.parametrize("name", ["", "x" * 101, "a b", "ü", "a\x1fb", "a\n", None, 5])
def test_other_names_are_refused(name: object) -> None:
    assert repr(name) in check_name(name)


def test_two_names_of_one_key_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(check_names("shop", [str(number) for number in range(1000)])) == 1000
    monkeypatch.setattr(config, "lock_key", lambda *_: 7)
    with pytest.raises(ConfigurationError, match="'a'"):
        check_names("shop", ["a", "b"])
    assert check_names("shop", ["a", "a"]) == {"a": 7}
