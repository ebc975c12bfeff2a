"""A node and a control plane of two versions, each in turn the newer one, do all that they do for an app."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Database,
    Instance,
    InstanceSpec,
    ListInstancesRequest,
)
from tests.e2e.stack import APP_DIRS, DEADLINE, ROOT, Stack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NODES = "environments/default/nodes"
FOLLOWING: dict[str, Any] = {
    "entrypoint": "patient:create_app",
    "database": Database(no_database=Database.NoDatabase()),
    "isolation": InstanceSpec.SHARED,
    "availability": InstanceSpec.CONSISTENT,
}


def git(*arguments: str) -> str:
    """Return what git prints; empty if there is no git, no history, or nothing to print."""
    if shutil.which("git") is None:
        return ""
    ran = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return ran.stdout.strip() if ran.returncode == 0 else ""


def previous() -> str:
    """Return the commit before what is being tried: where this branch left main, or, on main, its parent."""
    head = git("rev-parse", "HEAD")
    for main in ("origin/main", "main"):
        base = git("merge-base", "HEAD", main)
        if base and base != head:
            return base
    return git("rev-parse", "--verify", "--quiet", "HEAD^1")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tree of the commit before."""
    commit = previous()
    if not commit:
        pytest.skip("the commit before is not here: no clone, or a shallow one; git fetch --unshallow")
    if not git("ls-tree", commit, ".ci/v1-frozen"):
        pytest.skip(f"{commit} is of the time before v1 was frozen: nothing was promised then")
    folder = tmp_path_factory.mktemp("earlier")
    archive = folder.with_suffix(".tar")
    git("archive", "--format=tar", f"--output={archive}", commit, "gen", "services", "runtime_node")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder


@pytest.fixture(params=["the node is the older one", "the control plane is the older one"])
def stack(request: pytest.FixtureRequest, earlier: Path, tmp_path: Path) -> Iterator[Stack]:
    older_node = request.param == "the node is the older one"
    roots = (ROOT, earlier) if older_node else (earlier, ROOT)
    stack = Stack(
        tmp_path / "stack",
        app_dirs=(*APP_DIRS, ROOT / "tests/apps/failover"),
        control_plane_root=roots[0],
        node_root=roots[1],
    )
    try:
        yield stack.start()
    finally:
        stack.clean_up()


def home(stack: Stack, app_id: str) -> str:
    """Return the node on which an app serves, as the catalog tells it; empty if it does not."""
    app = stack.get(app_id)
    serves = app.state == Instance.RUNNING and not app.reconciling and len(app.instances) == 1
    return app.instances[0].node.rpartition("/")[2] if serves else ""


def test_an_app_lives_through_all_of_its_life_and_its_node(stack: Stack) -> None:
    eventually(lambda: stack.node("node-1").lease_state == fleet.Node.GRANTED, "node-1 has a lease")
    stack.create("shop")
    stack.serves("shop")
    update = catalog.UpdateAppRequest(app=catalog.App(name="apps/shop"))
    update.app.config["title"] = "Another"
    assert stack.result(stack.apps.UpdateApp(update, timeout=DEADLINE)).generation == 2
    stack.serves("shop")
    stack.result(stack.apps.RestartApp(catalog.RestartAppRequest(name="apps/shop"), timeout=DEADLINE))
    stack.serves("shop")
    stack.result(stack.apps.StopApp(catalog.StopAppRequest(name="apps/shop"), timeout=DEADLINE))
    assert stack.http("shop", "/healthz")[0] != 200
    stack.result(stack.apps.StartApp(catalog.StartAppRequest(name="apps/shop"), timeout=DEADLINE))
    stack.serves("shop")

    stack.create("follows", **FOLLOWING)
    eventually(lambda: stack.http("follows")[0] == 200, "a CONSISTENT app answers: its node holds the lease")
    stack.add_node("node-2")
    eventually(lambda: stack.node("node-2").lease_state == fleet.Node.GRANTED, "node-2 has a lease")
    move = catalog.MoveAppRequest(name="apps/follows", node=f"{NODES}/node-2")
    stack.result(stack.apps.MoveApp(move, timeout=DEADLINE))
    eventually(lambda: home(stack, "follows") == "node-2", "it has moved")
    stack.nodes["node-2"].kill()
    eventually(lambda: home(stack, "follows") == "node-1", "it is started on the node that is left")
    eventually(lambda: stack.http("follows")[0] == 200, "it answers there")
    stack.nodes["node-2"].start()
    eventually(lambda: stack.node("node-2").lease_state == fleet.Node.GRANTED, "node-2 has a lease again")
    with stack.runtime("node-2") as runtime:
        listed = ListInstancesRequest(parent="apps/follows")
        eventually(
            lambda: not runtime.ListInstances(listed, timeout=DEADLINE).instances, "node-2 has nothing of it"
        )

    drop = catalog.DeleteAppRequest.DROP
    for name in ("apps/shop", "apps/follows"):
        stack.wait(
            stack.apps.DeleteApp(catalog.DeleteAppRequest(name=name, data_policy=drop), timeout=DEADLINE)
        )
    assert not stack.apps.ListApps(catalog.ListAppsRequest(), timeout=DEADLINE).apps
