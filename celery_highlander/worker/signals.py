"""Celery-style signals for applications; nothing that safety hangs on may depend on a receiver.

Those of leadership are sent in the worker's main process, on the plugin's own thread, with `sender` = the name of the
singleton; `run_skipped` where the run of a singleton task was skipped, with `sender` = the task. What a receiver raises
is logged and swallowed, by Celery.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

leader_elected = Signal(name="leader_elected", providing_args={"token"})
leader_stepped_down = Signal(name="leader_stepped_down", providing_args={"token", "reason"})
leadership_lost = Signal(name="leadership_lost", providing_args={"token", "reason"})
run_skipped = Signal(name="run_skipped", providing_args={"task_id", "key"})
