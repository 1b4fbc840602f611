"""An application's engine whose password is rotated: read from a file each time, as from a vault."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import URL, Engine, create_engine, make_url

URL_VARIABLE = "HIGHLANDER_ARENA_VAULT_URL"
VAULT_VARIABLE = "HIGHLANDER_ARENA_VAULT"


def engine() -> Engine:
    """Return an engine with the present password; to be named in `highlander_engine`."""
    url: URL = make_url(os.environ[URL_VARIABLE])
    return create_engine(url.set(password=Path(os.environ[VAULT_VARIABLE]).read_text()))
