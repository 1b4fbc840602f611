"""The mark of what a task of a singleton queue starts: by it, its subprocesses are found when the task is killed.

A pool child sets the mark while such a task runs, and takes it away afterwards, so that what ordinary tasks leave
running on purpose bears none. It has two sides, for the two ways in which a process begins: an entry in the
environment, which a program inherits that is executed, and a mapping of memory with a telling name, which a fork
inherits that executes nothing. The kernel shows both in /proc, for orphans too. As long as the pool child itself
lives, everything below it that is younger than the task counts as well, whatever became of its environment.

Linux only: elsewhere nothing is found.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from pathlib import Path

from celery_highlander.clock import boot_time
from celery_highlander.keeper import process_table

VARIABLE = "CELERY_HIGHLANDER_TASK"
"""The entry in the environment: the keeper's address, and the pool child's pid."""

_MAPPING = "highlander-task"
_IS_MAPPED = re.compile(rb"/memfd:highlander-task:(\S+):(\d+)")


class TaskMark:
    """The mark in one pool child, for tasks of a worker whose keeper listens at `address`."""

    def __init__(self, address: str) -> None:
        self._value = f"{_plain(address)}:{os.getpid()}"
        self._mapping: mmap.mmap | None = None

    def put(self) -> None:
        """A task of a singleton queue begins."""
        os.environ[VARIABLE] = self._value
        if self._mapping is None and hasattr(os, "memfd_create"):
            descriptor = os.memfd_create(f"{_MAPPING}:{self._value}:{int(boot_time() / process_table.TICK)}")
            os.ftruncate(descriptor, mmap.PAGESIZE)
            self._mapping = mmap.mmap(descriptor, mmap.PAGESIZE)
            os.close(descriptor)

    def remove(self) -> None:
        """It has ended."""
        os.environ.pop(VARIABLE, None)
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None


class Searcher:
    """Finds what was started for the tasks of one worker.

    Args:
        address: where its keeper listens.
        worker: the worker's pid. Its ancestors are those that orphans are given to.
        spare: whose own processes are never found.
    """

    def __init__(self, address: str, worker: int, spare: int | None = None) -> None:
        self._address = _plain(address)
        self._foster_parents = {1, worker, *process_table.ancestors(worker)}
        self._spare = spare
        self._since = process_table.started_at(worker)

    def find(self, children: list[int], child: int | None = None) -> list[int]:
        """Return the pool children `children`, and what tasks of singleton queues started in them.

        Args:
            children: the pids of pool children that live.
            child: whose orphans are looked for, too; those of any pool child if not given.
        """
        table = process_table.snapshot()
        value = self._address if child is None else f"{self._address}:{child}"
        found = dict.fromkeys(pid for pid in children if pid in table)
        young = {pid for pid, process in table.items() if process.started >= self._since}
        for root in list(found):
            since = self._task_since(root)
            ours = process_table.below(root, table)
            found |= dict.fromkeys(
                pid
                for pid in ours
                if (since is not None and table[pid].started >= since) or _bears(pid, value, is_fork_possible=True)
            )
        for pid in young - found.keys():
            if _bears(pid, value, is_fork_possible=table[pid].parent in self._foster_parents):
                found |= dict.fromkeys([pid, *process_table.below(pid, table)])
        spared = {os.getpid()} if self._spare is None else {self._spare, *process_table.below(self._spare, table)}
        return [pid for pid in found if pid not in spared]

    def _task_since(self, child: int) -> int | None:
        """When the task began that a pool child runs, in ticks; None if it runs none of a singleton queue."""
        since = [int(match[2]) for match in _mappings(child) if match[1].startswith(self._address.encode())]
        return min(since, default=None)


def _bears(pid: int, value: str, *, is_fork_possible: bool) -> bool:
    entry = f"{VARIABLE}={value}".encode()
    with contextlib.suppress(*process_table.NOT_THERE):
        environment = b"\0" + Path(f"/proc/{pid}/environ").read_bytes() + b"\0"
        if b"\0" + entry + b"\0" in environment or b"\0" + entry + b":" in environment:
            return True
    if not is_fork_possible:  # those of others are not worth reading, and there is much to read
        return False
    wanted = value.encode()
    return any(match[1] == wanted or match[1].startswith(wanted + b":") for match in _mappings(pid))


def _mappings(pid: int) -> list[re.Match[bytes]]:
    with contextlib.suppress(*process_table.NOT_THERE):
        return list(_IS_MAPPED.finditer(Path(f"/proc/{pid}/maps").read_bytes()))
    return []


def _plain(address: str) -> str:
    return Path(address).name.removeprefix("@").removesuffix(".sock")
