"""kombu's transport of plain files, made whole: with kombu's own, a reader may meet a file that is not written yet.

`_put` there opens a message's file in its final place and then fills it; a worker that lists the directory in between
reads nothing, raises JSONDecodeError, and ends. The same holds for the files of exchanges.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kombu.transport import filesystem
from kombu.utils.json import dumps

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_TRIES = 200
_PAUSE = 0.005


def _once_whole(read: Callable[[], T]) -> T:
    """Call `read` until it does not meet a half-written file any more."""
    for _ in range(_TRIES):
        with contextlib.suppress(JSONDecodeError):
            return read()
        time.sleep(_PAUSE)
    return read()


class Channel(filesystem.Channel):
    """A channel that shows messages when they are complete."""

    def _put(self, queue: str, payload: object, **kwargs: Any) -> None:  # noqa: ARG002  # kombu's signature
        name = f"{time.monotonic_ns() // 1_000_000}_{uuid.uuid4()}.{queue}.msg"
        folder = Path(self.data_folder_out)
        hidden = folder / f".{name}"  # its name up to the first dot is empty: it belongs to no queue
        hidden.write_bytes(dumps(payload).encode())
        os.replace(hidden, folder / name)  # noqa: PTH105  # atomic, which is the point

    def _queue_bind(self, *args: Any) -> None:
        _once_whole(lambda: super(Channel, self)._queue_bind(*args))

    def get_table(self, exchange: str) -> Any:
        """Return the queues of an exchange."""
        return _once_whole(lambda: super(Channel, self).get_table(exchange))


class Transport(filesystem.Transport):
    """To be named in Celery's `broker_transport`."""

    Channel = Channel
