"""The key of a call: which calls of a singleton task have one key, which have two, and which have none."""

from __future__ import annotations

import datetime as dt
import inspect
import re
from collections import namedtuple
from contextlib import suppress
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from kombu.utils import json

from celery_highlander.errors import ConfigurationError, SingletonKeyError
from celery_highlander.tasks.canonical import MAX_DEPTH, canonical, plain
from celery_highlander.tasks.keys import MAX_LENGTH, KeyMaker

NAME = "shop.sync_account"
SOME_UUID = UUID("0d5b7a4e-2f7c-4c55-9d8f-0a4b8a1f2c3d")
NOON_UTC = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.timezone.utc)
NOON = NOON_UTC.replace(tzinfo=None)
NOON_UTC_IN_DELHI = NOON_UTC.astimezone(dt.timezone(dt.timedelta(hours=5, minutes=30)))


def sync_account(account_id: Any, region: Any = "eu", *, dry: Any = False) -> None: ...


def close_account(account_id: Any) -> None: ...


def sync_all() -> None: ...


def sync_some(first: Any, *args: Any, **kwargs: Any) -> None: ...


def sync_positional(first: Any, /, second: Any = 2) -> None: ...


def key_of(unique_on: Any, *args: Any, **kwargs: Any) -> str:
    return KeyMaker(NAME, sync_account, unique_on)(args, kwargs)


def problems_of(function: Any = sync_account, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        KeyMaker(NAME, function, **options)
    return str(caught.value)


class Order:
    def __init__(self, number: int) -> None:
        self.id = number


class Priced:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __json__(self) -> dict[str, int]:
        return {"cents": self.cents}


class Broken:
    def __json__(self) -> str:
        raise KeyError("s3cret")


class Region(Enum):
    EU = "eu"


class Level(int, Enum):
    HIGH = 3


class Loud(str):
    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


class PosesAsInt:
    """As Django's SimpleLazyObject and werkzeug's LocalProxy do."""

    __class__ = int  # type: ignore[assignment]


Point = namedtuple("Point", "x y")  # noqa: PYI024  # what old code passes


# --- unique_on -------------------------------------------------------------------------------------------------------


def test_without_options_the_key_is_the_tasks_name_whatever_the_arguments() -> None:
    make = KeyMaker("shop.sync_all", sync_all)
    assert make((), {}) == make((object(), 2), {"no": "such"}) == "shop.sync_all"


def test_a_key_is_readable_and_in_the_order_of_the_signature() -> None:
    for unique_on in (["region", "account_id"], ("account_id", "region"), {"region", "account_id"}):
        assert key_of(unique_on, 5, "us") == 'shop.sync_account(account_id=5, region="us")'


def test_one_name_may_be_given_as_a_string() -> None:
    assert key_of("account_id", 5) == key_of(["account_id"], 5) == "shop.sync_account(account_id=5)"


def test_arguments_that_are_not_named_do_not_count() -> None:
    assert key_of("account_id", 5, "us", dry=True) == key_of("account_id", 5)


def test_a_star_names_every_argument() -> None:
    assert key_of("*", 5) == 'shop.sync_account(account_id=5, region="eu", dry=false)'
    assert KeyMaker("shop.sync_all", sync_all, "*")((), {}) == "shop.sync_all()"


def test_an_omitted_default_is_the_default_given() -> None:
    assert key_of("*", 5) == key_of("*", 5, "eu", dry=False) == key_of("*", account_id=5, region="eu")


def test_a_star_names_variadic_arguments_too_and_sorts_the_keywords() -> None:
    make = KeyMaker("some", sync_some, "*")
    assert make((1, 2), {"b": 3, "a": 4}) == 'some(first=1, args=[2], kwargs={"a": 4, "b": 3})'
    assert make((1,), {}) == "some(first=1, args=[], kwargs={})"


def test_variadic_arguments_may_be_named() -> None:
    assert KeyMaker("some", sync_some, "args")((1, 2, 3), {"a": 4}) == "some(args=[2, 3])"
    assert KeyMaker("some", sync_some, "kwargs")((1, 2, 3), {"a": 4}) == 'some(kwargs={"a": 4})'


def test_a_name_beyond_the_signature_is_looked_up_in_the_keywords() -> None:
    make = KeyMaker("some", sync_some, ["shop", "account", "first"])
    assert make((1,), {"shop": 2, "account": 3}) == "some(first=1, account=3, shop=2)"


def test_a_keyword_that_is_absent_is_none() -> None:
    make = KeyMaker("some", sync_some, "shop")
    assert make((1,), {}) == make((1,), {"shop": None}) == "some(shop=null)"


def test_a_name_may_be_positional_only() -> None:
    make = KeyMaker("some", sync_positional, "*")
    assert make((1,), {}) == make((1, 2), {}) == make((1,), {"second": 2}) == "some(first=1, second=2)"


def test_a_bound_method_has_no_self() -> None:
    class Task:
        def run(self, account_id: int) -> None: ...

    assert KeyMaker("task", Task().run, "*")((5,), {}) == "task(account_id=5)"


@pytest.mark.parametrize(
    ("args", "kwargs", "told"),
    [
        ((), {}, "missing a required argument: 'account_id'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"acount": 2}, "got an unexpected keyword argument 'acount'"),
        ((1,), {"account_id": 2}, "multiple values for argument 'account_id'"),
    ],
)
def test_a_call_that_does_not_fit_has_no_key_and_python_says_why(args: Any, kwargs: Any, told: str) -> None:
    ways: list[dict[str, Any]] = [{"unique_on": "region"}, {"key": "{region}"}, {"key": sync_account}]
    for options in ways:
        with pytest.raises(SingletonKeyError, match=f"shop.sync_account: this call has no key: .*{told}"):
            KeyMaker(NAME, sync_account, **options)(args, kwargs)


CALLS = st.tuples(
    st.lists(st.integers(0, 2), max_size=5),
    st.dictionaries(st.sampled_from(["a", "b", "c", "d", "extra", "args", "kwargs"]), st.integers(0, 2), max_size=4),
)
PARAMETERS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                inspect.Parameter.POSITIONAL_ONLY,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.KEYWORD_ONLY,
                inspect.Parameter.VAR_KEYWORD,
            ]
        ),
        st.booleans(),
    ),
    max_size=4,
)


@settings(max_examples=500)
@given(PARAMETERS, CALLS)
@example([(inspect.Parameter.POSITIONAL_ONLY, False), (inspect.Parameter.VAR_KEYWORD, False)], ([], {"a": 0}))
def test_any_call_is_bound_as_python_binds_it(shape: list[tuple[Any, bool]], call: tuple[list[int], Any]) -> None:
    parameters = []
    for (kind, has_default), name in zip(sorted(shape, key=lambda one: one[0]), "abcd", strict=False):
        variadic = kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        default = 9 if has_default and not variadic else inspect.Parameter.empty
        parameters.append(inspect.Parameter(name, kind, default=default))
    try:
        signature = inspect.Signature(parameters)
    except ValueError:
        assume(False)
        raise

    def function() -> None: ...

    vars(function)["__signature__"] = signature
    make = KeyMaker("some", function, "*")
    args, kwargs = call
    bound = None
    with suppress(TypeError):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
    if bound is None or len(bound.arguments) < len(parameters):  # Python 3.13 binds what lacks a positional-only one
        with pytest.raises(SingletonKeyError):
            make(args, kwargs)
    else:
        expected = ", ".join(f"{name}={canonical(value)}" for name, value in bound.arguments.items())
        assert make(args, kwargs) == f"some({expected})"


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([None], "null"),
        ([True], "true"),
        ([5, 5.0, Decimal("5.00"), Decimal("0.5e1")], "5"),
        ([0, 0.0, -0.0, Decimal("-0.00")], "0"),
        ([0.1, Decimal("0.1"), Decimal("0.10")], "0.1"),
        ([-12.5, Decimal("-12.50")], "-12.5"),
        ([10**20, 1e20, Decimal("1e20")], "1" + "0" * 20),
        ([10**30, Decimal("1e30")], "1e30"),
        ([-(10**22), -1e22, Decimal("-1e22")], "-1e22"),
        ([2**80, 2.0**80, Decimal(2**80)], "1208925819614629174706176"),
        ([Decimal("1e999999")], "1e999999"),
        ([1e-300, Decimal("1e-300")], "1e-300"),
        ([float("inf"), Decimal("inf")], "inf"),
        ([float("-inf"), Decimal("-inf")], "-inf"),
        (["5"], '"5"'),
        ([""], '""'),
        (['a "b" \\ \n\0', Loud('a "b" \\ \n\0')], r'"a \"b\" \\ \n\u0000"'),
        (["Zürich"], '"Zürich"'),
        (["\ud83d\ude00", "\U0001f600"], '"\U0001f600"'),
        (["ü\ud83d"], r'"\u00fc\ud83d"'),
        ([b"ab"], 'b"ab"'),
        ([b"\xff\0"], r'b"\u00ff\u0000"'),
        ([SOME_UUID, str(SOME_UUID)], f'"{SOME_UUID}"'),
        ([NOON], "2026-03-01T12:00:00"),
        ([NOON_UTC, NOON_UTC_IN_DELHI], "2026-03-01T12:00:00+00:00"),
        ([NOON.date()], "2026-03-01"),
        ([NOON.time()], "12:00:00"),
        ([dt.timedelta(days=1, seconds=2)], "P1DT2S"),
        ([dt.timedelta(microseconds=-20)], "-P0DT0.000020S"),
        ([Region.EU, "eu"], '"eu"'),
        ([Level.HIGH, 3], "3"),
        ([[1, "2"], (1, "2"), Point(1, "2")], '[1, "2"]'),
        ([[], ()], "[]"),
        ([{3, 1, 20}, frozenset({20, 1, 3}), {1, 3, 20.0}], "set[1, 20, 3]"),
        ([set()], "set[]"),
        ([{"b": 1, "a": [2]}, {"a": [2], "b": 1}], '{"a": [2], "b": 1}'),
        ([{}], "{}"),
        ([{1: "x"}, {"1": "x"}], '{"1": "x"}'),
        ([{None: 1, True: 2, 1.5: 3}, {"null": 1, "true": 2, "1.5": 3}], '{"1.5": 3, "null": 1, "true": 2}'),
        ([{SOME_UUID: 1}, {str(SOME_UUID): 1}], f'{{"{SOME_UUID}": 1}}'),
        ([{Region.EU: 1}, {"eu": 1}], '{"eu": 1}'),
        ([{NOON.date(): 1}], "{2026-03-01: 1}"),
        ([Priced(5), {"cents": 5}], '{"cents": 5}'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_equal_values_have_one_text(values: list[Any], text: str) -> None:
    assert [canonical(value) for value in values] == [text] * len(values)


def test_djangos_lazy_texts_are_the_text_they_stand_for() -> None:
    lazy = pytest.importorskip("django.utils.functional").lazystr("eu")
    assert canonical(lazy) == canonical(json.loads(json.dumps(lazy))) == '"eu"'


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        Decimal("nan"),
        Decimal("snan"),
        10**5000,
        {10**5000: 1},
        object(),
        Order(1),
        Order,
        int,
        PosesAsInt(),
        Broken(),
        1j,
        bytearray(b"a"),
        range(3),
        (number for number in [1]),
        dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=1))),
        {(1, Order(1)): 1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_without_a_lasting_text_is_refused_by_the_arguments_name_and_its_type(value: Any) -> None:
    for nested in (value, [value], {"a": value}):
        with pytest.raises(SingletonKeyError) as caught:
            key_of(["account_id", "region"], 5, nested)
        assert str(caught.value).startswith("shop.sync_account: this call has no key: the argument 'region': ")
        assert "unique_on" in caught.value.hint


def test_an_error_shows_the_type_of_a_value_and_never_the_value() -> None:
    with pytest.raises(SingletonKeyError, match=r"a value of type .*test_task_keys\.Broken raised KeyError") as caught:
        key_of("account_id", Broken())
    assert isinstance(caught.value.__cause__, KeyError)
    assert "s3cret" not in str(caught.value)


def test_a_structure_that_contains_itself_is_refused() -> None:
    values: list[Any] = []
    values.append({"values": values})
    with pytest.raises(SingletonKeyError, match="contains itself"):
        key_of("account_id", values)


def test_structures_are_as_deep_as_the_bound_and_no_deeper() -> None:
    value: Any = []
    for _ in range(MAX_DEPTH):
        value = [value]
    assert canonical(value) == "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)
    with pytest.raises(SingletonKeyError, match="nested deeper"):
        canonical([value])


# Few of each kind, so that two structures are often equal, or differ by little.
ATOMS = st.sampled_from(
    [
        *[None, True, False, "null", "true", "None", "", "a", '"', "a, b", '"a"', "set[]", "[]", "{}", "inf"],
        *[0, 1, -1, -0.0, 1.0, "0", "1", "1.0", Decimal("1.00"), Decimal(0), 0.1, Decimal("0.10"), "0.1"],
        *[2**53, 2.0**53, 2**53 + 1, 1e22, 10**22, 10**22 + 1, 1e300, 10**300, float("inf"), Decimal("inf")],
        *[b"", b"a", b"\xff", "b''", 'b"a"', "\ud83d", "\ude00", "\ud83d\ude00", "\U0001f600", "\0"],
        *[SOME_UUID, str(SOME_UUID), NOON, NOON_UTC, NOON_UTC_IN_DELHI, NOON.isoformat(), NOON.date(), NOON.time()],
    ]
)
ALPHABET = st.text(st.characters(codec=None, exclude_categories=()), max_size=4)
SCALARS = (
    ATOMS
    | st.integers()
    | st.floats(allow_nan=False)
    | st.decimals(allow_nan=False)
    | ALPHABET
    | st.binary(max_size=4)
    | st.uuids()
    | st.datetimes()
    | st.datetimes(NOON.replace(2), NOON.replace(9998), timezones=st.timezones())
    | st.dates()
    | st.times()
)
KEYS = (
    st.sampled_from([None, True, False, 0, 1, 1.0, "0", "1", "1.0", "true", "null", "a"])
    | st.floats()
    | st.integers()
    | ALPHABET
)


def structures(atoms: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        atoms,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(keys, inner, max_size=3)
        ),
        max_leaves=8,
    )


VALUES = structures(SCALARS, KEYS)
SMALL_VALUES = structures(ATOMS, st.sampled_from([None, True, 1, 1.0, "1", "1.0", "true", "null", "a"]))


def carried(value: Any) -> Any:
    return json.loads(json.dumps(value))


def same(one: Any, other: Any) -> bool:  # noqa: PLR0911  # a table
    """Whether two values that JSON has carried are the same: the model, which knows nothing of texts."""
    numbers = (int, float, Decimal)
    if isinstance(one, bool) or isinstance(other, bool) or one is None or other is None:
        return one is other
    if isinstance(one, numbers) and isinstance(other, numbers):
        return bool(meant(one) == meant(other))
    if isinstance(one, (str, UUID)) and isinstance(other, (str, UUID)):
        return str(one) == str(other)
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def meant(number: Any) -> Any:
    fraction = isinstance(number, float) and not number.is_integer()
    return Decimal(repr(number)) if fraction else number


@settings(max_examples=1000)
@given(SMALL_VALUES, SMALL_VALUES)
@example({1: "x", "1": "y"}, {"1": "y"})
@example({1: "x"}, {1.0: "x"})
@example([["a"]], ["a"])
@example([True], [1])
def test_two_values_have_one_text_exactly_if_they_are_the_same_when_carried(one: Any, other: Any) -> None:
    assert (canonical(one) == canonical(other)) == same(carried(one), carried(other))


@settings(max_examples=500)
@given(
    st.integers() | st.floats(allow_nan=False) | st.decimals(allow_nan=False),
    st.sampled_from([float, Decimal, lambda number: Decimal(str(number)), lambda number: number * 10]),
)
def test_two_numbers_have_one_text_exactly_if_they_are_equal(number: Any, other_form: Any) -> None:
    other = other_form(number)
    assert (canonical(number) == canonical(other)) == (meant(number) == meant(other))


@given(st.datetimes(NOON.replace(2), NOON.replace(9998), timezones=st.timezones()), st.timezones())
def test_an_instant_has_one_text_in_all_time_zones(moment: dt.datetime, zone: dt.tzinfo) -> None:
    assert canonical(moment) == canonical(moment.astimezone(zone)) != canonical(moment.replace(tzinfo=None))


@settings(max_examples=500)
@given(VALUES)
def test_a_trip_through_kombus_json_keeps_the_text(value: Any) -> None:
    assert canonical(carried(value)) == canonical(value)


@given(SMALL_VALUES | st.frozensets(ATOMS, max_size=3) | st.timedeltas())
def test_a_text_fits_into_any_table(value: Any) -> None:
    for text in (canonical(value), plain(value)):
        assert "\0" not in text.encode().decode()


@given(st.timedeltas(), st.timedeltas())
def test_two_durations_have_one_text_exactly_if_they_are_equal(one: dt.timedelta, other: dt.timedelta) -> None:
    assert (canonical(one) == canonical(other)) == (one == other)


@given(st.lists(SMALL_VALUES, max_size=4), st.randoms())
def test_the_order_of_keys_does_not_count(values: list[Any], random: Any) -> None:
    items = [(str(place), value) for place, value in enumerate(values)]
    shuffled = random.sample(items, len(items))
    assert canonical(dict(items)) == canonical(dict(shuffled))


@given(st.lists(SMALL_VALUES, min_size=3, max_size=3), st.integers(0, 2), st.booleans())
def test_positional_is_keyword(values: list[Any], positional: int, stringly: bool) -> None:
    names = ["account_id", "region", "dry"]
    keywords = dict(zip(names[positional:], values[positional:], strict=True))
    unique_on = "*" if stringly else names
    assert key_of(unique_on, *values[:positional], **keywords) == key_of(
        unique_on, **dict(zip(names, values, strict=True))
    )


@given(st.lists(SMALL_VALUES, min_size=2, max_size=2), st.lists(SMALL_VALUES, min_size=2, max_size=2))
def test_calls_have_one_key_exactly_if_their_arguments_are_the_same(one: list[Any], other: list[Any]) -> None:
    on = ["account_id", "region"]
    assert (key_of(on, *one) == key_of(on, *other)) == same(carried(one), carried(other))


# --- length ----------------------------------------------------------------------------------------------------------


def test_a_key_is_whole_up_to_the_bound() -> None:
    whole = 'shop.sync_account(account_id="")'
    assert key_of("account_id", "x" * (MAX_LENGTH - len(whole))).count("x") == MAX_LENGTH - len(whole)


def test_a_longer_key_is_its_beginning_and_a_hash_of_the_whole() -> None:
    assert key_of("account_id", "x" * 1000) == (
        'shop.sync_account(account_id="' + "x" * 130 + "…45bbec8ce5b1a18afc45d587b7218bce"
    )


@given(st.integers(0, 400), st.integers(0, 400), st.sampled_from(["x", "ü", "\0"]))
def test_no_key_is_longer_than_the_bound_and_long_ones_differ_still(one: int, other: int, filler: str) -> None:
    keys = [key_of("account_id", filler * length) for length in (one, other)]
    assert max(map(len, keys)) <= MAX_LENGTH
    assert (keys[0] == keys[1]) == (one == other)


# --- templates -------------------------------------------------------------------------------------------------------


def templated(template: str, *args: Any, function: Any = sync_account, **kwargs: Any) -> str:
    return KeyMaker(NAME, function, key=template)(args, kwargs)


def test_a_template_is_the_whole_key_so_that_tasks_may_share_it() -> None:
    one = KeyMaker("shop.sync", sync_account, key="account:{account_id}")
    other = KeyMaker("shop.close", close_account, key="account:{account_id}")
    assert one((5,), {}) == other((), {"account_id": 5.0}) == "account:5"


def test_strings_stand_in_a_template_without_quotation_marks() -> None:
    assert templated("{region}/{account_id}", SOME_UUID, 'e"u') == f'e"u/{SOME_UUID}'
    assert templated("{region}", 1, Region.EU) == templated("{region}", 1) == "eu"


def test_control_characters_in_a_template_are_escaped() -> None:
    assert templated("{region}", 1, "a\0\nb\ud83d") == r"a\u0000\nb\ud83d"


def test_braces_are_doubled_as_everywhere() -> None:
    assert templated("{{{account_id}}}", 5) == "{5}"


def test_a_template_reaches_attributes_and_items() -> None:
    assert templated("order:{account_id.id}", Order(7)) == "order:7"
    assert templated("order:{account_id[id]}/{region[0]}", {"id": 7}, ["x"]) == "order:7/x"


def test_a_template_reaches_keywords_beyond_the_signature() -> None:
    assert templated("{first}:{shop}", 1, function=sync_some, shop=2) == "1:2"


def test_a_template_refuses_a_value_whose_text_is_its_address() -> None:
    with pytest.raises(SingletonKeyError, match=r"\{account_id\}: a value of type .*Order has no text") as caught:
        templated("order:{account_id}", Order(7))
    assert "at 0x" not in str(caught.value)


def test_a_field_that_a_value_lacks_is_told() -> None:
    with pytest.raises(SingletonKeyError, match=r"\{account_id\.number\} raised AttributeError") as caught:
        templated("{account_id.number}", Order(7))
    assert isinstance(caught.value.__cause__, AttributeError)


def test_an_empty_text_is_no_key() -> None:
    with pytest.raises(SingletonKeyError, match="empty"):
        templated("{region}", 5, "")


# --- functions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("account:5", "account:5"),
        (5.0, "5"),
        (SOME_UUID, str(SOME_UUID)),
        (("account", 5), '["account", 5]'),
        (["account", Decimal("5.0")], '["account", 5]'),
    ],
)
def test_a_functions_result_is_the_key(result: Any, text: str) -> None:
    assert KeyMaker(NAME, sync_account, key=lambda *args, **kwargs: result)((5,), {}) == text  # noqa: ARG005


def test_a_function_is_called_as_the_task_is_with_defaults_filled_in() -> None:
    def key(account: int, region: str, *, dry: bool) -> str:
        return f"{account} {region} {dry}"

    make = KeyMaker(NAME, sync_account, key=key)
    assert make((), {"account_id": 5}) == make((5, "eu"), {"dry": False}) == "5 eu False"


def test_an_error_of_the_function_is_the_cause() -> None:
    def key(account_id: Any) -> str:
        raise LookupError(f"s3cret {account_id}")

    with pytest.raises(SingletonKeyError, match="raised LookupError") as caught:
        KeyMaker(NAME, close_account, key=key)((1,), {})
    assert isinstance(caught.value.__cause__, LookupError)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("result", "told"),
    [(None, "returned None"), ("", "empty"), (Order(1), "the result of the function that makes it: a value of type")],
)
def test_a_function_has_to_return_a_key(result: Any, told: str) -> None:
    with pytest.raises(SingletonKeyError, match=told):
        KeyMaker(NAME, sync_all, key=lambda: result)((), {})


# --- options ---------------------------------------------------------------------------------------------------------


def test_a_misspelt_argument_is_told_with_the_ones_there_are_and_the_nearest() -> None:
    assert problems_of(unique_on=["acount_id"]) == (
        "shop.sync_account: unique_on names 'acount_id', which is no argument of the task "
        "(it takes account_id, region, dry): did you mean 'account_id'?"
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"unique_on": "account_id", "key": "{account_id}"}, "both given"),
        ({"unique_on": []}, "names no argument"),
        ({"unique_on": 5}, "neither the name of an argument nor a list of names"),
        ({"unique_on": b"account_id"}, "neither the name of an argument nor a list of names"),
        ({"unique_on": {"account_id": 1}}, "neither the name of an argument nor a list of names"),
        ({"unique_on": ["account_id", 5]}, "5, which is not a string"),
        ({"unique_on": [""]}, "'', which is no argument"),
        ({"key": 5}, "neither a template"),
        ({"key": ""}, "is empty"),
        ({"key": "{acount_id}"}, "did you mean 'account_id'"),
        ({"key": "{}"}, "has to name an argument"),
        ({"key": "{0}"}, "has to name an argument"),
        ({"key": "{account_id"}, "is malformed"),
        ({"key": "account_id}"}, "is malformed"),
        ({"key": "{account_id.}"}, "is malformed"),
        ({"key": "{account_id[}"}, "is malformed"),
        ({"key": "{account_id:>5}"}, "allows neither"),
        ({"key": "{account_id!r}"}, "allows neither"),
        ({"key": lambda account_id: account_id}, "has to take what the task takes"),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", str(value)),  # the same in every process
)
def test_options_that_cannot_work_are_refused(options: Any, told: str) -> None:
    assert told in problems_of(**options)


def test_a_coroutine_function_cannot_make_keys() -> None:
    async def key() -> str:
        return "all"

    assert "coroutine function" in problems_of(sync_all, key=key)


def test_every_mistake_is_told_at_once() -> None:
    told = problems_of(unique_on=["acount_id", 5], key="{regio!r}")
    assert told.startswith("5 settings do not fit:")
    for part in ("both given", "'account_id'?", "5, which", "'region'?", "allows neither"):
        assert part in told


def test_a_task_without_arguments_is_told_so() -> None:
    assert "(it takes none)" in problems_of(sync_all, unique_on="account_id")


def test_builtins_and_partials_may_make_keys() -> None:
    assert KeyMaker("task", close_account, key=str)(("a",), {}) == "a"
    assert KeyMaker("task", close_account, key=partial("{}:{}".format, "x"))(("a",), {}) == "x:a"
