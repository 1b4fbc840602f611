"""Each planted bug makes its test go red, and the list fits the code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.planted.bugs import BUGS, Bug
from tests.faults.planted.garden import is_found, plant

if TYPE_CHECKING:
    from pathlib import Path

every_bug = pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))


@every_bug
def test_the_bug_still_fits_the_code(bug: Bug, tmp_path: Path) -> None:
    plant(bug, tmp_path)


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.postgres
@pytest.mark.timeout(300)
@every_bug
def test_the_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    found, said = is_found(bug, tmp_path)
    assert found, said
