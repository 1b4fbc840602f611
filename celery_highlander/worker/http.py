"""`/metrics` and `/healthz` over HTTP, on a thread of the operating system: it answers while the main loop hangs.

Made for probes and scrapers on a private network: GET only, one request a connection, no TLS, no passwords. Off by
default.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from celery_highlander.clock import boot_time
from celery_highlander.worker import native
from celery_highlander.worker.health import health_of
from celery_highlander.worker.metrics import render

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery_highlander.worker.link import KeeperLink
    from celery_highlander.worker.metrics import Family

logger = logging.getLogger("celery_highlander")

_BACKLOG = 16
_REQUEST_LIMIT = 8192
_REQUEST_TIMEOUT = 2.0  # seconds for a request to be there
_CLIENTS = 32  # at once; who comes beyond that is hung up on
_ACCEPT_AGAIN = 0.1
_RETRY_INTERVAL = 2.0  # seconds from one try for an address that is taken to the next one
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`, `:port` (every address of the machine) or `[v6]:port`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class Endpoint:
    """The server of one worker.

    Args:
        address: where to listen.
        link: what to tell of.
    """

    def __init__(self, address: str, link: KeeperLink) -> None:
        self._address = address
        self._link = link
        self._module = importlib.import_module("_socket")  # `socket` may be green
        self._socket: Any = None
        self._closed = native.Latch()
        self._lock = native.lock()
        self._clients = 0

    def start(self) -> None:
        """Listen; where that is not possible, say so, and try again until it is."""
        try:
            self._socket = self._listen()
        except OSError as error:
            logger.warning(
                "highlander: no metrics and no health check here, as long as %s cannot be listened on (%s). Another "
                "worker of this host may have it: give each one its own --highlander-http-address.",
                self._address,
                error.strerror or error,
            )
        else:
            self._announce()
        native.start_thread(self._run)

    def close(self) -> None:
        """Listen no more."""
        self._closed.set()
        sock, self._socket = self._socket, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(2)  # wakes the thread
            with contextlib.suppress(OSError):
                sock.close()

    def _announce(self) -> None:
        logger.info("highlander: /metrics and /healthz on %s", self._address)

    def _listen(self) -> Any:
        host, port = parse_address(self._address)
        module = self._module
        family = module.AF_INET6 if ":" in host else module.AF_INET
        sock = module.socket(family, module.SOCK_STREAM)
        try:
            sock.setsockopt(module.SOL_SOCKET, module.SO_REUSEADDR, 1)
            sock.bind((host or ("::" if family == module.AF_INET6 else "0.0.0.0"), port))  # noqa: S104  # as asked for
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
        return sock

    def _run(self) -> None:
        """In a rolling restart the old worker has the address until it ends."""
        while self._socket is None:
            if self._closed.wait(_RETRY_INTERVAL):
                return
            with contextlib.suppress(OSError):
                self._socket = self._listen()
                self._announce()
        if self._closed.is_set:
            self.close()  # which came while the address was being got
        self._serve()

    def _serve(self) -> None:
        while (listener := self._socket) is not None:
            try:
                descriptor, _ = listener._accept()
            except OSError as error:
                if self._closed.is_set:
                    return
                logger.debug("highlander: a connection over HTTP failed: %r", error)
                native.sleep(_ACCEPT_AGAIN)  # no descriptors left, for instance
                continue
            client = self._module.socket(fileno=descriptor)
            with self._lock:
                self._clients += 1
                too_many = self._clients > _CLIENTS
            if too_many:
                self._hang_up(client)
            else:
                native.start_thread(partial(self._serve_one, client))

    def _serve_one(self, client: Any) -> None:
        try:
            client.sendall(self._answer(_path(client)))
            client.shutdown(self._module.SHUT_WR)  # a pool child that was forked meanwhile has it open too
        except Exception as error:  # noqa: BLE001  # whatever one request does, the next one is answered
            logger.debug("highlander: a request over HTTP failed: %r", error)
        finally:
            self._hang_up(client)

    def _hang_up(self, client: Any) -> None:
        client.close()
        with self._lock:
            self._clients -= 1

    def _answer(self, path: str) -> bytes:
        if path == "/metrics":
            return _response(200, render(families_of(self._link)), _TEXT)
        if path in ("/healthz", "/health"):
            health = health_of(self._link)
            return _response(200 if health.ok else 503, json.dumps(health.as_json()) + "\n", "application/json")
        return _response(404, "There is /metrics and /healthz.\n", "text/plain")


def families_of(link: KeeperLink) -> Iterable[Family]:
    """Return the metrics of a link as they are now."""
    shown = link.snapshot
    leading = [name for name, phase in shown.phases.items() if phase in ("leading", "stopping", "lost")]
    deadline = link.cell.deadline if leading else 0.0
    return link.metrics.families(
        connected=shown.connected,
        leading=leading,
        paused=link.paused,
        deadline=deadline,
        healthy=health_of(link).ok,
    )


def _path(client: Any) -> str:
    """Read a request; return the path, or nothing if it is none that is answered.

    Raises:
        TimeoutError: it was not there in time.
    """
    request = b""
    until = boot_time() + _REQUEST_TIMEOUT
    while b"\r\n\r\n" not in request and b"\n\n" not in request and len(request) < _REQUEST_LIMIT:
        client.settimeout(max(0.01, until - boot_time()))
        chunk = client.recv(_REQUEST_LIMIT)
        if boot_time() > until:
            raise TimeoutError("the request was not there in time")
        if not chunk:
            break
        request += chunk
    method, _, rest = request.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
    return rest.partition(" ")[0].partition("?")[0] if method == "GET" else ""


_PHRASES = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}


def _response(status: int, text: str, kind: str) -> bytes:
    body = text.encode()
    head = (
        f"HTTP/1.1 {status} {_PHRASES[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
