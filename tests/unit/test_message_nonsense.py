"""Whatever arrives on a channel, it is a message, one of a later release, or refused; and no end of it breaks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_highlander.keeper import cell as lease_cell
from celery_highlander.keeper import messages, vocabulary
from celery_highlander.keeper.messages import LINE_LIMIT, Channel, ChannelClosedError, MessageError

if TYPE_CHECKING:
    from celery_highlander.keeper.vocabulary import Vocabulary

VOCABULARIES = {
    name: getattr(vocabulary, name)
    for name in ("WORKER_SAYS", "KEEPER_SAYS", "KEEPER_ORDERS", "LAUNCHER_SAYS", "PROCESS_SAYS")
}
SAMPLES: dict[str, Any] = {"token": 7, "pid": 1, "names": ["a"], "level": 20, "backend_pid": 3, "kill_deadline": None}
"""A right value where a text is not; each of these is wrong for a table."""

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10)
anything = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
lines = st.binary(max_size=300) | anything.map(lambda value: json.dumps(value).encode())


def heard(data: bytes, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """What a channel makes of these bytes, and then the end."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, vocabulary)
    with theirs:
        theirs.sendall(data)
    try:
        return channel.receive()
    finally:
        channel.close()


@settings(max_examples=300, deadline=None)
@given(st.lists(lines, max_size=5), st.sampled_from(sorted(VOCABULARIES)), st.booleans())
def test_random_lines_are_messages_or_refused(parts: list[bytes], name: str, ended: bool) -> None:
    data = b"\n".join(parts) + (b"\n" if ended else b"")
    try:
        found = heard(data, VOCABULARIES[name])
    except ChannelClosedError:
        return
    assert all(isinstance(message["type"], str) for message in found)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(sorted(VOCABULARIES)))
def test_a_message_that_passes_has_every_field_that_it_must_have(data: st.DataObject, name: str) -> None:
    known = VOCABULARIES[name]
    type_ = data.draw(st.sampled_from(sorted(known)))
    fields = data.draw(st.dictionaries(st.sampled_from(sorted(known[type_])), anything))
    try:
        (message,) = heard(json.dumps({**fields, "type": type_}).encode() + b"\n", known)
    except MessageError:
        return
    assert all(is_right(message[field]) for field, is_right in known[type_].items())


@pytest.mark.parametrize("name", sorted(VOCABULARIES))
def test_messages_and_fields_of_a_later_release_pass(name: str) -> None:
    assert heard(b'{"type": "invented later", "x": [1]}\n', VOCABULARIES[name])
    for type_, checks in VOCABULARIES[name].items():
        message: dict[str, Any] = {"type": type_, "invented_later": {"x": 1}}
        for field, is_right in checks.items():
            some: tuple[Any, ...] = (SAMPLES.get(field), "text", 1, {}, [], None)
            candidates = [value for value in some if is_right(value)]
            message[field] = candidates[0]
        assert heard(json.dumps(message).encode() + b"\n", VOCABULARIES[name]) == [message]


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    theirs.setblocking(False)
    sent = 0

    def flood() -> None:
        nonlocal sent
        while sent < 4 * LINE_LIMIT:
            try:
                sent += theirs.send(b"x" * 65536)
            except BlockingIOError:  # noqa: PERF203  # that is the point
                assert channel.receive() == []

    with theirs, pytest.raises(MessageError):
        flood()
    assert sent < 2 * LINE_LIMIT
    channel.close()


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(MessageError):
        messages.parse(b'{"type": ' + b"[" * 100_000, {})


# -- real processes ----------------------------------------------------------------------------------------------------

NONSENSE = [
    pytest.param(b"\xff\x00\n", id="bytes"),
    pytest.param(b'{"type": "he', id="half a line"),
    pytest.param(b'{"type": "hello"}\n', id="nothing in it"),
    pytest.param(b'["hello"]\n', id="a list"),
    pytest.param(b'{"type": "fork", "name": "a", "token": 1}\n', id="a fork without a descriptor"),
    pytest.param(b"x" * (LINE_LIMIT + 100_000), id="huge"),
]


def hello(**changes: object) -> bytes:
    """What a worker says first: this process is the worker, and there is no such database."""
    fields: dict[str, object] = {
        "type": "hello", "pid": os.getpid(), "node": "n", "worker": "w", "address": f"@highlander-test-{os.getpid()}",
        "namespace": "", "schema": "", "cell": -1, "worker_timeout": 5.0, "keys": {"a": 1}, "processes": {},
        "launch": {}, "target": {"url": "postgresql+psycopg2://nobody@127.0.0.1:1/none", "connect_args": {}},
        "timing": {
            "lease": 3.0, "heartbeat_interval": 0.4, "heartbeat_timeout": 0.8, "drain_timeout": 1.0,
            "kill_margin": 0.4, "poll_interval": 0.2,
        },
    }  # fmt: skip
    return json.dumps({**fields, **changes}).encode() + b"\n"


def told(module: str, data: bytes, *pass_fds: int, first: bytes = b"") -> tuple[int, str]:
    """Start a keeper or launcher, tell it this (once it has answered to `first`), and close; return how it ended."""
    ours, theirs = socket.socketpair()
    argv = [sys.executable, "-m", module, str(theirs.fileno())]
    process = subprocess.Popen(argv, pass_fds=(theirs.fileno(), *pass_fds), stderr=subprocess.PIPE, text=True)
    theirs.close()
    with ours:
        try:
            if first:
                ours.sendall(first)
                assert ours.recv(1)
            ours.sendall(data)
            ours.shutdown(socket.SHUT_WR)
            while ours.recv(65536):
                pass
        except ConnectionError:
            pass  # it has refused by closing
        _, written = process.communicate(timeout=30)
    return process.returncode, written


@pytest.mark.parametrize("data", NONSENSE)
def test_a_keeper_without_a_hello_ends_without_a_traceback(data: bytes) -> None:
    code, written = told("celery_highlander.keeper", data)
    assert code in {0, 65}
    assert "Traceback" not in written


@pytest.mark.parametrize("data", [NONSENSE[0], NONSENSE[5]])
def test_a_keeper_that_hears_nonsense_ends_as_if_its_worker_had_left(data: bytes) -> None:
    descriptor = lease_cell.create()
    code, written = told("celery_highlander.keeper", data, descriptor, first=hello(cell=descriptor))
    os.close(descriptor)
    assert code == 0
    assert "Traceback" not in written


def test_a_hello_of_another_release_is_understood() -> None:
    descriptor = lease_cell.create()
    timing = {**json.loads(hello())["timing"], "invented_later": 1.0}
    said = hello(cell=descriptor, timing=timing, invented_later=[1]) + b'{"type": "invented later"}\n'
    code, written = told("celery_highlander.keeper", said, descriptor)
    os.close(descriptor)
    assert code == 0
    assert "no hello" not in written


@pytest.mark.parametrize("data", [NONSENSE[0], NONSENSE[4], NONSENSE[5]])
def test_a_launcher_that_hears_nonsense_ends_without_a_traceback(data: bytes) -> None:
    code, written = told("celery_highlander.worker.launcher", data)
    assert code == 0
    assert "Traceback" not in written
