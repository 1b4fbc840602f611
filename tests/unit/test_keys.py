"""The advisory-lock key: 64 signed bits of namespace and name, and back from the halves that `pg_locks` shows."""

from __future__ import annotations

from hashlib import blake2b

from hypothesis import example, given
from hypothesis import strategies as st

from celery_highlander.election.keys import key_from_pg_locks, lock_key

KEYS = st.integers(-(1 << 63), (1 << 63) - 1)

PINNED = [-7992797772065421331, 2915705290708812050]
"""Keys are held in running clusters: a change would let two nodes of two releases lead at once."""


def halves(key: int) -> tuple[int, int]:
    """Split a key as PostgreSQL does: `classid` and `objid` are unsigned."""
    unsigned = key & ((1 << 64) - 1)
    return unsigned >> 32, unsigned & 0xFFFFFFFF


def test_the_key_of_a_name_never_changes() -> None:
    digest = blake2b(b"default\x1fbeat").digest()
    assert lock_key("default", "beat") == int.from_bytes(digest[:8], "big", signed=True)
    assert [lock_key("default", name) for name in ("beat", "ledger")] == PINNED


def test_keys_of_both_signs_occur() -> None:
    keys = [lock_key("default", str(number)) for number in range(64)]
    assert min(keys) < 0 < max(keys)


@given(st.text(), st.text())
def test_a_key_fits_a_signed_bigint(namespace: str, name: str) -> None:
    assert -(1 << 63) <= lock_key(namespace, name) < 1 << 63


def test_the_border_between_namespace_and_name_counts() -> None:
    assert lock_key("a", "bc") != lock_key("ab", "c")
    assert lock_key("", "abc") != lock_key("abc", "")


@given(KEYS)
@example(-1)
@example(0)
@example(-(1 << 63))
@example((1 << 63) - 1)
@example(1 << 31)
@example(-(1 << 32))
def test_a_key_comes_back_from_the_halves_that_pg_locks_shows(key: int) -> None:
    classid, objid = halves(key)
    assert 0 <= classid < 1 << 32
    assert 0 <= objid < 1 << 32
    assert key_from_pg_locks(classid, objid) == key


def test_a_negative_keys_upper_half_is_shown_above_two_to_the_31st() -> None:
    assert halves(-1) == (0xFFFFFFFF, 0xFFFFFFFF)
    assert key_from_pg_locks(0x80000000, 0) == -(1 << 63)
    assert key_from_pg_locks(0x7FFFFFFF, 0xFFFFFFFF) == (1 << 63) - 1
