"""A control plane for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.control_plane.plane import Plane


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    plane = Plane(tmp_path)
    await plane.start()
    try:
        yield plane
    finally:
        await plane.close()
