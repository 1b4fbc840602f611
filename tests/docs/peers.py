"""Declares the tasks of a guide with the package that it leaves: `python -m tests.docs.peers <module> <redis>`."""

from __future__ import annotations

import sys
from types import ModuleType

from celery import Celery

from tests.docs import bank
from tests.docs.pages import BEFORE, MODULES, blocks

if __name__ == "__main__":
    module, url = sys.argv[1:]
    app = Celery(module, broker=url, backend=url, set_as_current=True)
    made = ModuleType(module)
    made.__dict__.update(app=app, bank=bank)
    sys.modules[module] = made
    for block in blocks(MODULES[module]):
        if block.kind == BEFORE:
            block.run(made.__dict__, url)
    sys.stdout.write("\n".join(sorted(name for name in app.tasks if name.startswith(f"{module}."))))
