"""The rule for absent services: a visible skip on a developer's machine, a failure in CI."""

from __future__ import annotations

import os

import pytest


def require(reason: str | None) -> None:
    """Skip the test if there is a reason to; fail it instead where `CI=true`, so that no service is lost unnoticed.

    Args:
        reason: What `available()` of a service says: why it cannot be had, or None if it can.
    """
    if reason is None:
        return
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"absent in CI: {reason}", pytrace=False)
    pytest.skip(reason)
