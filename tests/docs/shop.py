"""The app whose tasks are those of the pages; run by a worker, and by `python -m tests.docs.shop <module>`."""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType

from celery import Celery

from celery_highlander import Highlander
from tests.docs import bank
from tests.docs.pages import AFTER, HAPPENS, MODULES, blocks

app = Celery("pages", set_as_current=True)
app.conf.update(json.loads(os.environ.get("HIGHLANDER_ARENA_CONF", "{}")))
app.conf.broker_connection_retry_on_startup = True
Highlander(app)


def load(module: str) -> ModuleType:
    """Import a page: its tasks are in a module of that name."""
    made = ModuleType(module)
    sys.modules[module] = made
    made.__dict__.update(app=app, bank=bank)
    for block in blocks(MODULES[module]):
        if block.kind == AFTER:
            block.run(made.__dict__, app.conf.highlander_url)
    return made


if __name__ == "__main__":
    names = load(sys.argv[1]).__dict__
    for block in blocks(MODULES[sys.argv[1]]):
        if block.kind == HAPPENS:
            block.run(names, app.conf.highlander_url)
            sys.stdout.write(f"{block.page}:{block.line}\n")
else:
    for _module in MODULES:
        load(_module)
