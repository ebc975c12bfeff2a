"""Code that is imported before its app comes: what is, what is left alone, and what is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.instances.code_place import CodePlace
from runtime_node.loader import Loader
from runtime_node.tiers.ahead import CodeAhead
from services.rpc.errors import SupervisorError
from tests.eventually import eventually

FACTORY = "def create_app(context):\n    raise AssertionError('not called')\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ahead_shop.py").write_text(FACTORY)
    (tmp_path / "ahead_object.py").write_text("async def app(scope, receive, send): ...\n")
    (tmp_path / "ahead_broken.py").write_text(f"import nowhere_at_all\n{FACTORY}")
    return tmp_path


@pytest.fixture
def ahead(folder: Path) -> CodeAhead:
    return CodeAhead(Loader([folder]), CodePlace("environments/e/nodes/n", [folder]).located)


def imported(name: str) -> list[str]:
    return [module for module in sys.modules if module.startswith(name)]


async def test_a_factory_is_imported_and_not_called(ahead: CodeAhead, folder: Path) -> None:
    let_go = await ahead.fetch("ahead_shop:create_app", InstanceSpec.ISOLATION_TIER_UNSPECIFIED)
    assert imported("ahead_shop")
    let_go()
    await eventually(lambda: ahead._loader._locations._unused)  # kept for the start, as any unused code
    ahead._loader.close()
    assert not imported("ahead_shop")


@pytest.mark.parametrize(
    ("entrypoint", "tier"),
    [
        ("ahead_object:app", InstanceSpec.ISOLATION_TIER_UNSPECIFIED),
        ("ahead_object:app", InstanceSpec.SHARED),
        ("ahead_shop:create_app", InstanceSpec.PROCESS),
    ],
)
async def test_what_its_start_would_not_import_here_is_left_alone(
    ahead: CodeAhead, entrypoint: str, tier: InstanceSpec.IsolationTier.ValueType
) -> None:
    let_go = await ahead.fetch(entrypoint, tier)
    let_go()
    assert not imported("ahead_")


@pytest.mark.parametrize(
    ("entrypoint", "reason"),
    [
        ("ahead_nowhere:app", "ENTRYPOINT_MODULE_NOT_FOUND"),
        ("ahead_broken:create_app", "ENTRYPOINT_IMPORT_FAILED"),
    ],
)
async def test_what_is_missing_is_told_with_the_places_looked_at(
    ahead: CodeAhead, folder: Path, entrypoint: str, reason: str
) -> None:
    with pytest.raises(SupervisorError) as refused:
        await ahead.fetch(entrypoint, InstanceSpec.ISOLATION_TIER_UNSPECIFIED)
    assert (refused.value.reason, refused.value.metadata["app_dirs"]) == (reason, str(folder))
