"""`python -m tests.faults.planted [WORD]`: plant each bug (whose name has the word) and tell whether it was found."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.faults.planted.bugs import BUGS
from tests.faults.planted.garden import is_found


def main(word: str = "") -> int:
    """Return how many were missed."""
    missed = 0
    for bug in BUGS:
        if word in bug.name:
            with tempfile.TemporaryDirectory() as directory:
                found, said = is_found(bug, Path(directory))
            last = said.strip().splitlines()[-1] if said.strip() else ""
            print(f"{'found ' if found else 'MISSED'}  {bug.name}  ({last})", flush=True)
            missed += not found
    return missed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
