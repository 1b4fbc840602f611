"""The blocks of Python in the pages, each with what it is for; runs none of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("celery_singleton", "celery_once", "celery_heimdall")
GUIDES = {f"from_{peer}": f"docs/how-to/migrate-from-{peer.replace('_', '-')}.md" for peer in PEERS}
"""The guides, by the names of the modules that their tasks are in."""

MODULES = {**GUIDES, "explained": "docs/explanation/singleton-tasks.md", "shown": "README.md"}
"""The pages with singleton tasks, by the names of the modules that their tasks are in."""

BEFORE, AFTER, HAPPENS = "# before", "# after", "# what happens"
URL = "postgresql+psycopg2://app@db/shop"
"""The database of the pages."""

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A block: `kind` is one of `# before`, `# after` and `# what happens`, its first line in the guides."""

    kind: str
    source: str
    page: str
    line: int

    def run(self, names: dict[str, object], url: str) -> None:
        """Execute it; a traceback shows the page's lines."""
        source = "\n" * (self.line - 1) + self.source.replace(URL, url)
        exec(compile(source, str(ROOT / self.page), "exec"), names)


def blocks(page: str) -> list[Block]:
    """The blocks of a page; of other pages than guides those that declare singleton tasks, and what follows them."""
    text = (ROOT / page).read_text()
    found = []
    for match in _BLOCK.finditer(text):
        source = match[1]
        line = text.count("\n", 0, match.start()) + 2
        kind = source.partition("\n")[0]
        if kind not in (BEFORE, AFTER, HAPPENS):
            if page in GUIDES.values():
                raise AssertionError(f"{page}:{line}: a block of none of the kinds")
            if "singleton_task" not in source:
                continue
            kind = AFTER
        found.append(Block(kind, source, page, line))
    return found
