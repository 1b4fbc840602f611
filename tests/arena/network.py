"""Hosts as network namespaces on one bridge, whose links can be cut; it knows nothing of what runs on them."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tests.arena import processes
from tests.arena.lifecycle import find_binary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from typing_extensions import Self

Way = Literal["both", "from", "to"]

_PREFIX = "arena"
_NETNS_DIRECTORY = Path("/run/netns")
_numbers = itertools.count(1)


@functools.cache
def available() -> str | None:
    """Why there can be no network namespaces here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    for program in ("ip", "ss", "nft"):
        if find_binary(program) is None:
            return f"{program} is not installed (iproute2 and nftables)"
    return _trial()


def _trial() -> str | None:
    try:
        with Network(["trial"]) as network:
            network.cut("trial")
    except (processes.ServerError, OSError) as error:
        return f"network namespaces do not work here: {error}"
    return None


@dataclass(frozen=True, slots=True)
class Host:
    """One machine of the arena: its namespace, its address, and its port on the bridge."""

    name: str
    netns: str
    address: str
    bridge_port: str


class Network:
    """Hosts that reach each other through a bridge in a namespace of its own; nothing outside is touched.

    A cut drops packets in the bridge, ARP included, so that no end hears of it; what TCP had in flight is sent again
    after `heal`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._stem = f"{_PREFIX}-{os.getpid()}-{next(_numbers)}"
        self._switch = f"{self._stem}-switch"
        self._dropped: set[tuple[str | None, str | None]] = set()
        self.hosts = {
            name: Host(name, f"{self._stem}-{name}", f"10.213.0.{number}", f"port{number}")
            for number, name in enumerate(names, 1)
        }
        processes.at_end(self.close)

    def start(self) -> Self:
        """Make the namespaces and the wires."""
        _sweep()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def host(self, name: str) -> Host:
        """The host called `name`."""
        return self.hosts[name]

    def run_in(self, name: str, argv: Sequence[str]) -> list[str]:
        """The argv that runs `argv` on a host, to be given to subprocess."""
        return ["ip", "netns", "exec", self.host(name).netns, *argv]

    def spawn(self, name: str, argv: Sequence[str], *, log: Path) -> subprocess.Popen[bytes]:
        """Start `argv` on a host; killed when this process dies. The caller ends it."""
        return processes.spawn(argv, log=log, netns=self.host(name).netns, death_signal=signal.SIGKILL)

    def cut(self, name: str, way: Way = "both") -> None:
        """Drop all packets `from` a host, `to` it, or both."""
        port = self.host(name).bridge_port
        if way in {"both", "from"}:
            self._dropped.add((port, None))
        if way in {"both", "to"}:
            self._dropped.add((None, port))
        self._apply()

    def cut_between(self, sender: str, receiver: str) -> None:
        """Drop the packets from one host to one other; the answers pass."""
        self._dropped.add((self.host(sender).bridge_port, self.host(receiver).bridge_port))
        self._apply()

    def unplug(self, name: str) -> None:
        """Take the link down: the host sees its carrier vanish."""
        self._in_switch("ip", "link", "set", self.host(name).bridge_port, "down")

    def kill_connections(self, name: str, peer: str) -> int:
        """End every TCP connection of a host with another one, on its own side; return how many there were.

        The peer hears of it by a reset, which a cut keeps from it.
        """
        command = ["ss", "-K", "-H", "-t", "dst", self.host(peer).address]
        return len(processes.run(self.run_in(name, command)).splitlines())

    def heal(self, name: str | None = None) -> None:
        """End every cut of this host, or of all, and plug the link in again."""
        hosts = [self.host(name)] if name is not None else list(self.hosts.values())
        ports = {host.bridge_port for host in hosts}
        self._dropped = {drop for drop in self._dropped if not ports & set(drop)}
        self._apply()
        for host in hosts:
            self._in_switch("ip", "link", "set", host.bridge_port, "up")

    def close(self) -> None:
        """Remove everything; may be called twice. Processes on the hosts are ended by who started them."""
        for netns in (self._switch, *(host.netns for host in self.hosts.values())):
            _delete(netns)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _build(self) -> None:
        processes.run(["ip", "netns", "add", self._switch])
        self._in_switch("ip", "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
        self._in_switch("ip", "link", "set", "bridge", "up")
        for host in self.hosts.values():
            processes.run(["ip", "netns", "add", host.netns])
            ends = [
                host.bridge_port,
                "netns",
                self._switch,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                host.netns,
            ]
            processes.run(["ip", "link", "add", *ends])
            self._in_switch("ip", "link", "set", host.bridge_port, "master", "bridge", "up")
            inside = ["ip", "-n", host.netns]
            processes.run([*inside, "address", "add", f"{host.address}/24", "dev", "eth0"])
            for device in ("eth0", "lo"):
                processes.run([*inside, "link", "set", device, "up"])

    def _apply(self) -> None:
        """Put the set of cuts into force in one transaction of nft."""
        rules = "\n".join(
            "add rule bridge arena forward"
            + (f' iifname "{sender}"' if sender else "")
            + (f' oifname "{receiver}"' if receiver else "")
            + " drop"
            for sender, receiver in sorted(self._dropped, key=str)
        )
        with tempfile.NamedTemporaryFile("w", suffix=".nft") as script:
            script.write(
                "add table bridge arena\n"
                "add chain bridge arena forward { type filter hook forward priority 0; policy accept; }\n"
                f"flush chain bridge arena forward\n{rules}\n"
            )
            script.flush()
            self._in_switch("nft", "-f", script.name)

    def _in_switch(self, *argv: str) -> None:
        processes.run(["ip", "netns", "exec", self._switch, *argv])


def _delete(netns: str) -> None:
    if (_NETNS_DIRECTORY / netns).exists():
        subprocess.run(["ip", "netns", "delete", netns], check=False, capture_output=True)


def _sweep() -> None:
    """Remove what killed test runs left behind."""
    for entry in _NETNS_DIRECTORY.glob(f"{_PREFIX}-*"):
        owner = entry.name.split("-")[1]
        if owner.isdigit() and not processes.is_alive(int(owner)):
            _delete(entry.name)
