"""Runs the Python blocks of pages as modules, without a worker: `python -m tests.docs.declare <page> …`.

The blocks of a page are one module, `shop`, which begins with an app where they make none; a block whose first line is
a file's name begins another one. Settings are checked after each block.
"""

from __future__ import annotations

import sys
from types import ModuleType

from celery import Celery

from celery_highlander import Highlander
from tests.docs.fences import BEFORE, HAPPENS, Fence, fences

URL = "postgresql+psycopg2://app@db/shop"
SHOP = "shop.py"

PREAMBLE = f'''\
from celery import Celery
from celery_highlander import Highlander

app = Celery("shop", broker="amqp://")
app.conf.highlander_url = "{URL}"
highlander = Highlander(app)
'''
"""How a page's shop begins that shows only what comes then."""


def run(page: str) -> int:
    """Run the blocks of a page; return how many there were."""
    modules: dict[str, ModuleType] = {}
    name = SHOP
    ran = 0
    for fence in fences(page):
        if fence.language != "python" or not fence.is_run or fence.first_line == HAPPENS:
            continue
        name = BEFORE if fence.first_line == BEFORE else fence.file or (SHOP if name == BEFORE else name)
        if name not in modules:
            modules[name] = _module(name, begins="Celery(" not in fence.source)
        exec(compile(fence.padded(), fence.place, "exec"), modules[name].__dict__)
        _check(modules[name], fence)
        ran += 1
    for made in modules.values():
        sys.modules.pop(made.__name__, None)
    return ran


def _module(name: str, *, begins: bool) -> ModuleType:
    made = ModuleType(name.removesuffix(".py").replace("/", ".").removeprefix("# "))
    sys.modules[made.__name__] = made
    if name == SHOP and begins:
        exec(PREAMBLE, made.__dict__)
    elif name == BEFORE:
        made.__dict__["app"] = Celery("before")
    return made


def _check(made: ModuleType, fence: Fence) -> None:
    """See that the settings, as they are now, can work."""
    app = made.__dict__.get("app")
    if made.__name__ == "settings":  # Django's
        app = Celery("project")
        app.config_from_object(made, namespace="CELERY")
        Highlander(app)
    plugin = Highlander.of(app) if isinstance(app, Celery) else None
    if app is None or plugin is None:
        return
    app.finalize()
    if app.conf.get("highlander_url") or made.__dict__.get("engine") is not None:
        settings = plugin.settings()
        plugin.keys(settings)
    elif fence.file is None:
        raise AssertionError(f"{fence.place}: an app without a database")


if __name__ == "__main__":
    for page in sys.argv[1:]:
        sys.stdout.write(f"{page} {run(page)}\n")
