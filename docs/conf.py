"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import diagram  # noqa: E402
import reference  # noqa: E402

import celery_highlander  # noqa: E402  # found by the line above

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "celery-highlander"
author = "The celery-highlander authors"
release = version = celery_highlander.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_ext", "reference/generated", "reference/compatibility-runs.md"]
html_theme = "furo"
html_title = f"celery-highlander {release}"
html_copy_source = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
suppress_warnings = ["myst.xref_missing"]  # links out of docs/, to files of the repository


def setup(app: Sphinx) -> None:
    """Write what is generated from the code before it is read."""
    app.connect("builder-inited", lambda _: write())


def write() -> None:
    """Write the generated pages and pictures."""
    made = HERE / "reference" / "generated"
    made.mkdir(exist_ok=True)
    for name, text in reference.pages().items():
        (made / f"{name}.md").write_text(text)
    (made / "election.svg").write_text(diagram.svg())
