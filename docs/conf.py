"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

project = "celery-highlander"
author = "The celery-highlander authors"
copyright = "The celery-highlander authors, BSD-3-Clause"  # noqa: A001  # Sphinx's name
version = release = version_of("celery-highlander")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "generated",  # docs/_ext
]
exclude_patterns = ["_build", "_ext"]
source_suffix = {".md": "markdown"}
nitpicky = False

# -- Markdown ----------------------------------------------------------------------------------------------------------

myst_enable_extensions = ["deflist", "fieldlist", "attrs_block", "attrs_inline"]
myst_heading_anchors = 3

# -- docstrings --------------------------------------------------------------------------------------------------------

default_role = "code"  # the docstrings write `code` as Markdown does
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False

# -- HTML --------------------------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"celery-highlander {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_sourcelink = False
# No web font and no script from elsewhere: the pages are whole without a network.
