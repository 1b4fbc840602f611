"""Finds the fenced blocks of all pages, with what they are and whether they are run; runs none.

A block that cannot be run says so in a comment before it: `<!-- not run: the reason -->`.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts),
]
"""Every page, by its path from the root."""

TUTORIAL = "docs/tutorial/first-failover.md"

_FENCE = re.compile(
    r"^(?P<indent> *)(?:<!-- not run: (?P<reason>.*?) -->\n\s*)?"
    r"```(?P<language>\S*)[^\n]*\n(?P<source>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"# ([\w/]+\.py)\n")
BEFORE, HAPPENS = "# before", "# what happens"


@dataclass(frozen=True, slots=True)
class Fence:
    """A fenced block: its language, its text, and the line on which that begins."""

    page: str
    line: int
    language: str
    source: str
    reason: str
    """Why it is not run; empty where it is."""

    @property
    def is_run(self) -> bool:
        """Whether it is run, or parsed."""
        return not self.reason

    @property
    def first_line(self) -> str:
        """Which may say what the block is."""
        return self.source.partition("\n")[0]

    @property
    def file(self) -> str | None:
        """The file that it begins, if it says so."""
        match = _FILE.match(self.source)
        return match[1] if match else None

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"{self.page}:{self.line}"

    def padded(self) -> str:
        """The text behind as many empty lines as there are before it, so that a traceback shows the page's lines."""
        return "\n" * (self.line - 1) + self.source


def fences(page: str) -> list[Fence]:
    """The blocks of a page, in their order."""
    text = (ROOT / page).read_text()
    return [
        Fence(
            page,
            text.count("\n", 0, match.start("source")) + 1,
            match["language"],
            textwrap.dedent(match["source"]),
            (match["reason"] or "").strip(),
        )
        for match in _FENCE.finditer(text)
    ]


def commands(fence: Fence) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that it is said to print."""
    found: list[tuple[str, list[str]]] = []
    for line in fence.source.splitlines():
        if line.startswith("$ "):
            found.append((re.sub(r"\s{2,}# .*$", "", line[2:]), []))
        elif found:
            found[-1][1].append(line)
        else:
            raise AssertionError(f"{fence.place}: output before the first command")
    return found
