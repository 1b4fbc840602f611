"""The advisory-lock key of a singleton; knows nothing of who holds it."""

from __future__ import annotations

from hashlib import blake2b

_SEPARATOR = b"\x1f"  # ASCII unit separator: refused in names, so that ("a", "b/c") and ("a/b", "c") differ


def lock_key(namespace: str, name: str) -> int:
    r"""Return the signed 64-bit key for `pg_try_advisory_lock(bigint)`.

    The first eight bytes, big-endian, of the 64-byte blake2b (RFC 7693, no key) over UTF-8 `namespace`, the byte 0x1f,
    UTF-8 `name`. In SQL, with the extension pgcrypto: `('x' || encode(substr(digest(convert_to(namespace || e'\x1f' ||
    name, 'UTF8'), 'blake2b512'), 1, 8), 'hex'))::bit(64)::bigint`.
    """
    digest = blake2b(namespace.encode() + _SEPARATOR + name.encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def key_from_pg_locks(classid: int, objid: int) -> int:
    """Return the signed key that `pg_locks` shows as two unsigned 32-bit halves.

    In SQL: `(classid::bigint << 32) | objid::bigint` where `objsubid = 1`.
    """
    unsigned = (classid << 32) | objid
    return unsigned - (1 << 64) if unsigned >= 1 << 63 else unsigned
