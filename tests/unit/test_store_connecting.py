"""What is shown of where to connect to: everything that helps, and no password, however it was given."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL, make_url

from celery_highlander.errors import ConfigurationError, HighlanderError, SchemaError
from celery_highlander.store import connecting
from celery_highlander.store.connecting import (
    Target,
    open_connection,
    parse_url,
    place_of,
    plain,
    redacted,
    without_password,
)

PASSWORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=6).filter(
    lambda text: text.split() == [text]
)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://app:s3cret@db:5432/shop", "postgresql://app:***@db:5432/shop"),
        ("postgresql://app@db/shop?password=s3cret", "postgresql://app@db/shop?password=%2A%2A%2A"),
        ("postgresql://app@db/shop?sslpassword=s3cret&a=b", "postgresql://app@db/shop?a=b&sslpassword=%2A%2A%2A"),
        ("postgresql://app@db/shop", "postgresql://app@db/shop"),
        ("app:s3cret@db", "<a URL that cannot be parsed>"),
        ("postgresql://app:s3cret@db:port/shop", "<a URL that cannot be parsed>"),
        ("", "<a URL that cannot be parsed>"),
    ],
)
def test_a_url_is_shown_without_its_passwords(url: str, shown: str) -> None:
    assert redacted(url) == shown
    assert repr(Target(url, {"password": "s3cret"})) == f"Target({shown})"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql://app:s3cret@db:5432/shop", "postgresql://app:***@db:5432/shop"),
        ("postgresql+psycopg://db", "postgresql+psycopg://db"),
        ("postgresql+psycopg2://app@/shop?host=/run/postgresql&password=s3cret", "postgresql+psycopg2://app@/shop"),
        ("postgresql://app:s3@cret@db/shop", "postgresql://app:***@cret@db/shop"),  # as SQLAlchemy takes it apart
        ("postgresql://app:s3%40cret@[::1]:5432/shop", "postgresql://app:***@[::1]:5432/shop"),
        ("app:s3cret@db", "<a URL that cannot be parsed>"),
    ],
)
def test_where_a_url_leads_to_is_shown_without_what_is_nobodys_business(url: str, place: str) -> None:
    assert place_of(url) == place


@given(st.from_regex(connecting._ORDINARY, fullmatch=True, alphabet=st.characters(codec="ascii")))
def test_an_ordinary_url_is_taken_apart_as_sqlalchemy_does(url: str) -> None:
    parsed = make_url(url)
    user, _, rest = place_of(url).partition("://")[2].rpartition("@")
    assert (parsed.username or "") == unquote(user.removesuffix(":***"))
    assert rest == (parsed.host or "") + (f":{parsed.port}" if parsed.port is not None else "") + (
        f"/{parsed.database}" if parsed.database is not None else ""
    )


@given(PASSWORDS)
def test_no_form_of_a_password_stays_in_a_message(password: str) -> None:
    url = URL.create("postgresql", "app", password, "db", database="shop").render_as_string(hide_password=False)
    encoded = url.partition("app:")[2].rpartition("@")[0]
    told = without_password(f"tried <{password}> and <{encoded}>", Target(url, {}))
    assert told == "tried <***> and <***>"


@pytest.mark.parametrize(
    "target",
    [
        Target("postgresql://app@db", {"password": "s3cret"}),
        Target("postgresql://app@db", {"dsn": "host=db password='s3cret' user=app"}),
        Target("postgresql://app@db?password=s3cret", {}),
        Target("postgresql://app:other@db", {"password": "s3cret"}),
        Target("not a url", {"password": "s3cret"}),
    ],
    ids=range(5),
)
def test_a_password_is_found_wherever_it_was_given(target: Target) -> None:
    assert without_password("login with s3cret\n  failed", target) == "login with *** failed"


def test_a_target_without_a_password_leaves_messages_alone() -> None:
    assert without_password("as it\nis", Target("postgresql://app@db", {})) == "as it is"


@pytest.mark.parametrize("url", ["postgresql://app:s3cret@db:port/x", "app:s3cret@db", "postgresql//s3cret"])
def test_a_url_that_cannot_be_parsed_is_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_url(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_driver_that_is_not_installed_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg2", None)
    with pytest.raises(ConfigurationError, match="psycopg2") as caught:
        open_connection(Target("postgresql://app:s3cret@db/shop", {}), "test")
    assert "celery-highlander[psycopg]" in caught.value.hint
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (SchemaError("no tables.", "Make some."), "no tables. Make some."),
        (ValueError("s3cret is\nwrong"), "ValueError: *** is wrong"),
    ],
)
def test_any_error_becomes_one_line(error: Exception, shown: str) -> None:
    assert plain(error, Target("postgresql://app:s3cret@db", {})) == shown


def test_every_error_has_a_code_of_its_own() -> None:
    from celery_highlander.errors import ERRORS_BY_CODE

    def all_below(kind: type[HighlanderError]) -> set[type[HighlanderError]]:
        below: set[Any] = {kind}
        for child in kind.__subclasses__():
            below |= all_below(child)
        return below

    ours = {kind for kind in all_below(HighlanderError) if kind.__module__ == "celery_highlander.errors"}
    assert set(ERRORS_BY_CODE.values()) == ours - {HighlanderError}
    assert len({kind.code for kind in ours}) == len(ours)
