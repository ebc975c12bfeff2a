"""A control plane for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.control_plane.plane import Plane


@pytest.fixture
async def plane(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Plane]:
    """Give a control plane; parametrized by what differs from the usual one."""
    plane = Plane(tmp_path, **getattr(request, "param", {}))
    await plane.start()
    try:
        yield plane
    finally:
        await plane.close()
