"""Which tier an app ends up in: the one it asks for, unless its code or its settings cannot do with that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from runtime_node.loader.process_only import PROCESS_ONLY
from runtime_node.tiers.process.zygote import Zygote

from .conftest import Hosted, hosting

NAME = "apps/shop/instances/a1"
SHARED, THREAD, PROCESS = pb.InstanceSpec.SHARED, pb.InstanceSpec.THREAD, pb.InstanceSpec.PROCESS
UNSET = pb.InstanceSpec.ISOLATION_TIER_UNSPECIFIED

ANSWERS = """
import os
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": os.environ.get("MOTTO", "none").encode()})
    elif scope["type"] == "lifespan":
        raise RuntimeError
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A directory of apps; every package that needs a process is vendored in it, as an empty one."""
    directory = tmp_path / "code"
    for package in PROCESS_ONLY:
        (directory / package).mkdir(parents=True)
        (directory / package / "__init__.py").touch()
    (directory / "answers.py").write_text(ANSWERS)
    return directory


@pytest.fixture
async def node(tmp_path: Path, code: Path) -> AsyncIterator[Hosted]:
    zygote = Zygote.launch([code], preload=[])
    async with hosting(tmp_path, zygote, app_dir=str(code)) as subject:
        await zygote.ready()
        yield subject


@pytest.mark.parametrize("package", PROCESS_ONLY)
async def test_code_that_needs_a_process_is_refused_elsewhere_and_gets_one_unless_told_otherwise(
    node: Hosted, code: Path, package: str
) -> None:
    (code / "shop.py").write_text(
        f"def create_app(context):\n    import {package}.ui\n    from answers import app\n    return app\n"
    )
    (code / package / "ui.py").touch()
    await node.start(entrypoint="shop:create_app", isolation=SHARED)
    failed = await node.reaches(pb.Instance.FAILED)
    assert failed.last_error.reason == "ISOLATION_UNSUPPORTED"
    assert PROCESS_ONLY[package] in failed.last_error.message
    await node.stop()
    await node.is_gone()
    await node.start(entrypoint="shop:create_app", isolation=UNSET, epoch=2)
    assert (await node.reaches(pb.Instance.RUNNING)).isolation == PROCESS
    assert (await node.ask("shop")).status_code == 200


async def test_a_start_that_finds_out_only_then_goes_on_in_a_process(node: Hosted, code: Path) -> None:
    (code / "shop.py").write_text(
        "import importlib\ndef create_app(context):\n    importlib.import_module('nice' + 'gui')\n"
        "    return importlib.import_module('answers').app\n"
    )
    await node.start(entrypoint="shop:create_app", isolation=UNSET)
    assert (await node.reaches(pb.Instance.RUNNING)).isolation == PROCESS
    assert (await node.ask("shop")).status_code == 200


@pytest.mark.parametrize("tier", [SHARED, THREAD])
async def test_an_app_object_is_refused_where_nothing_of_its_spec_can_reach_it(
    node: Hosted, tier: pb.InstanceSpec.IsolationTier.ValueType
) -> None:
    await node.start(entrypoint="answers:app", isolation=tier, env={"MOTTO": "x"})
    failed = await node.reaches(pb.Instance.FAILED)
    assert failed.last_error.reason == "ISOLATION_UNSUPPORTED"
    for word in (
        "takes no context",
        "env, secret_env and database",
        "isolation PROCESS",
        "create_app(context)",
    ):
        assert word in failed.last_error.message


async def test_an_app_object_gets_its_spec_where_it_belongs(node: Hosted) -> None:
    await node.start(entrypoint="answers:app", isolation=UNSET, env={"MOTTO": "mine"})
    assert (await node.reaches(pb.Instance.RUNNING)).isolation == PROCESS
    assert (await node.ask("shop")).text == "mine"


async def test_an_app_object_on_a_node_without_processes_is_refused(hosted: Hosted) -> None:
    await hosted.start(entrypoint="plain:app", isolation=UNSET)
    failed = await hosted.reaches(pb.Instance.FAILED)
    assert failed.last_error.reason == "ISOLATION_UNSUPPORTED"


@pytest.mark.parametrize("given", ["env", "secret_env"])
async def test_a_factory_without_a_context_is_an_app_object_in_this(
    node: Hosted, code: Path, given: str
) -> None:
    (code / "shop.py").write_text("def create_app():\n    from answers import app\n    return app\n")
    await node.start(entrypoint="shop:create_app", isolation=SHARED, **{given: {"MOTTO": "mine-alone"}})
    failed = await node.reaches(pb.Instance.FAILED)
    assert failed.last_error.reason == "ISOLATION_UNSUPPORTED"
    assert "takes no context: its env and secret_env" in failed.last_error.message
    await node.stop()
    await node.is_gone()
    await node.start(
        entrypoint="shop:create_app", isolation=UNSET, epoch=2, **{given: {"MOTTO": "mine-alone"}}
    )
    assert (await node.reaches(pb.Instance.RUNNING)).isolation == PROCESS
    assert (await node.ask("shop")).text == "mine-alone"


READS = {
    "item": "os.environ['KEY']",
    "default": "os.environ.get('KEY', 'sqlite:///dev.db')",
    "getenv": "os.getenv('KEY')",
    "settings": "Settings()",
}


@pytest.mark.parametrize("when", ["factory", "import"])
@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize(("given", "instead"), [("env", "context.env"), ("secret_env", "context.secrets")])
async def test_a_factory_that_looks_for_its_settings_in_the_environment_is_told_where_they_are(
    hosted_code: Hosted, code: Path, when: str, how: str, given: str, instead: str
) -> None:
    read = {"factory": READS[how], "import": "0"}[when], {"factory": "0", "import": READS[how]}[when]
    (code / "shop.py").write_text(
        "import os\nfrom pydantic_settings import BaseSettings\n"
        "class Settings(BaseSettings):\n    key: str = 'sqlite:///dev.db'\n"
        f"{read[1]}\ndef create_app(context):\n    {read[0]}\n"
    )
    await hosted_code.start(entrypoint="shop:create_app", isolation=SHARED, **{given: {"KEY": "of its own"}})
    failed = await hosted_code.reaches(pb.Instance.FAILED)
    assert f"read {instead}['KEY'] instead of os.environ['KEY']" in failed.last_error.message


@pytest.fixture
async def hosted_code(tmp_path: Path, code: Path) -> AsyncIterator[Hosted]:
    async with hosting(tmp_path, app_dir=str(code)) as subject:
        yield subject


async def test_what_an_app_sets_in_the_environment_itself_it_reads_there(
    hosted_code: Hosted, code: Path
) -> None:
    (code / "shop.py").write_text(
        "import os\ndef create_app(context):\n    os.environ['MOTTO'] = context.env['MOTTO']\n"
        "    from answers import app\n    return app\n"
    )
    await hosted_code.start(entrypoint="shop:create_app", env={"MOTTO": "mine"})
    await hosted_code.reaches(pb.Instance.RUNNING)
    assert (await hosted_code.ask("shop")).text == "mine"
