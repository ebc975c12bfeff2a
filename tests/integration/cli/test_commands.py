"""The command line against a real control plane with a fake node: what it does, writes, and ends with."""

import asyncio
import json
import re
import shlex
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
import yaml

from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceFigures
from services.cli.errors import Exit
from services.cli.main import app as program
from services.cli.main import run
from services.cli.programs import PROGRAMS
from services.control_plane.reconciler.transactions import lease_ran_out
from services.control_plane.store.interface import Transaction
from services.spec.versions import VERSION
from tests.eventually import WITHIN
from tests.fakes.runtime_node import Behaviour
from tests.integration.control_plane.plane import Plane
from tests.issued import issue

Command = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    plane = Plane(tmp_path)
    await plane.start()
    try:
        await plane.node(http_address="127.0.0.1:8080")
        yield plane
    finally:
        await plane.close()


@pytest.fixture
def command(
    plane: Plane, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    monkeypatch.setenv("APPSUPERVISOR_CONFIG", str(tmp_path / "contexts.yaml"))
    monkeypatch.setenv("APPSUPERVISOR_ADDRESS", plane.address)
    monkeypatch.chdir(tmp_path)

    async def ran(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = await asyncio.to_thread(run, list(arguments))
        told = capsys.readouterr()
        return int(status), told.out, told.err

    return ran


async def test_an_app_goes_full_circle(command: Command) -> None:
    status, out, _ = await command(
        "create", "shop", "shop:create_app", "-c", "title=A title", "-l", "tier=gold"
    )
    assert (status, out.splitlines()[1].split()[:2]) == (0, ["shop", "RUNNING"])
    status, out, _ = await command("get", "shop", "-o", "json")
    assert json.loads(out)["config"] == {"title": "A title"}
    status, out, _ = await command("update", "shop", "--set", "config.title=B", "--jmespath", "config.title")
    assert (status, out) == (0, "B\n")
    status, out, _ = await command("stop", "shop", "-o", "name")
    assert (status, out) == (0, "apps/shop\n")
    status, out, _ = await command("describe", "shop")
    assert "STOPPED" in out
    assert "Changed: config.title (was A title)." in out
    assert "StopRequested" in out
    assert (await command("wait", "shop", "--for", "stopped"))[0] == 0
    assert (await command("start", "shop"))[0] == 0
    assert (await command("delete", "shop", "--drop", "--yes"))[0] == 0
    status, out, _ = await command("list", "-o", "json")
    assert (status, json.loads(out)) == (0, [])


async def test_a_group_lists_with_and_without_the_word_and_the_version_is_told(command: Command) -> None:
    for words in (["nodes"], ["nodes", "list"], ["nodes", "list", "--environment", "default"]):
        assert await command("-o", "name", *words) == (Exit.DONE, "environments/default/nodes/fake-1\n", "")
    assert await command("--version") == (Exit.DONE, f"appsupervisor {VERSION}\n", "")


async def test_what_goes_wrong_is_a_sentence_with_a_status_for_scripts(
    command: Command, plane: Plane
) -> None:
    await command("create", "shop", "shop:create_app")
    for arguments, expected, sentence in (
        (["get", "nope"], Exit.NOT_FOUND, "apps/nope does not exist. (APP_NOT_FOUND)"),
        (["create", "shop", "a:b"], Exit.CONFLICT, "exists already"),
        (["create", "Bad Id", "nonsense"], Exit.USAGE, "app.entrypoint must have the form"),
        (["list", "--filter", "x ="], Exit.USAGE, "INVALID_FILTER"),
        (["update", "shop", "--set", "nonsense=1"], Exit.USAGE, "no such field"),
        (["stop", "shop", "--etag", '"other"'], Exit.CONFLICT, "ETAG_MISMATCH"),
        (["wait", "shop", "--for", "nonsense"], Exit.USAGE, "one of ready"),
        (["wait", "shop", "--for", "stopped", "--timeout", "1"], Exit.TIMED_OUT, "RUNNING after 1 s"),
        (["list", "--context", "nope", "--address", ""], Exit.USAGE, "There is no context"),
        (["list", "--address", "127.0.0.1:1"], Exit.UNREACHABLE, "No control plane answers"),
        (["delete", "shop", "--drop"], Exit.USAGE, "Say --yes"),
    ):
        status, out, err = await command(*arguments)
        assert (status, out) == (expected, ""), arguments
        assert sentence in err, arguments
        assert "Traceback" not in err


async def test_other_code_on_disk_is_told_until_a_restart_has_loaded_it(
    command: Command, plane: Plane, tmp_path: Path
) -> None:
    await command("create", "shop", "shop:create_app")
    assert "Other code" not in (await command("describe", "shop"))[1]
    plane.nodes[0].code["shop:create_app"] = "edited"
    status, out, _ = await command("describe", "shop")
    assert (status, "Other code is on disk than runs. `appsupervisor restart shop`" in out) == (0, True)
    (file := tmp_path / "apps.yaml").write_text("name: shop\nentrypoint: shop:create_app\n")
    for arguments in (["apply", "-f", str(file)], ["update", "shop", "--set", "entrypoint=shop:create_app"]):
        status, _, err = await command(*arguments)
        assert (status, "is other than what runs" in err) == (0, True), arguments
    await command("restart", "shop")
    await plane.app("apps/shop", lambda app: len(app.instances) == 1)
    _, out, _ = await command("describe", "shop")
    assert "Other code" not in out
    digest = (await plane.get("apps/shop")).instances[0].code.digest[:12]
    assert digest in out
    assert digest in (await command("get", "shop", "-o", "wide"))[1]


async def test_a_start_that_fails_is_told_with_its_reason(command: Command, plane: Plane) -> None:
    plane.nodes[0].behaviours["bad:create_app"] = Behaviour(fails=("APP_STARTUP_FAILED", "It lacks a table."))
    status, _, err = await command("create", "bad", "bad:create_app")
    assert status == Exit.FAILED
    assert "It lacks a table." in err
    assert "APP_STARTUP_FAILED" in err


async def test_lost_data_is_given_up_by_a_start_that_says_so(command: Command, plane: Plane) -> None:
    await command("create", "shop", "shop:create_app")
    await command("stop", "shop")
    plane.nodes[0].disk.data.clear()
    status, _, err = await command("start", "shop")
    assert (status, "DATA_MISSING" in err, "--accept-data-loss" in err) == (Exit.FAILED, True, True)
    assert (await command("start", "-l", "a=b", "--accept-data-loss"))[0] == Exit.USAGE
    assert (await command("start", "shop", "--accept-data-loss"))[0] == Exit.DONE


async def test_documents_are_applied_compared_exported_and_deleted(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "apps.yaml"
    file.write_text("name: a\nentrypoint: x:y\nlabels: {set: one}\n---\nname: b\nentrypoint: x:y\n")
    assert (await command("diff", "-f", str(file)))[0] == 1
    status, out, _ = await command("apply", "-f", str(file), "-o", "name")
    assert (status, out) == (0, "apps/a\napps/b\n")
    assert await command("diff", "-f", str(file)) == (0, "", "")
    await command("update", "a", "--set", "config.kept=1")
    file.write_text("name: a\nlabels: {more: x}\n")
    await command("apply", "-f", str(file))
    _, out, _ = await command("export", "a")
    content = yaml.safe_load(out)
    assert (content["labels"], content["config"]) == ({"set": "one", "more": "x"}, {"kept": 1})
    file.write_text("name: c\nentrypoint: nonsense\n---\nname: d\nentrypoint: x:y\n")
    status, _, err = await command("apply", "-f", str(file))
    assert (status, "document 1" in err) == (Exit.USAGE, True)
    assert (await command("get", "d"))[0] == Exit.NOT_FOUND
    file.write_text("name: d\nentrypoint: x:y\nlabels: {set: one}\n")
    assert (await command("apply", "-f", str(file), "--prune"))[0] == Exit.USAGE
    status, _, err = await command("apply", "-f", str(file), "--prune", "-l", "set=one", "--yes")
    assert (status, "  a\n" in err) == (0, True)
    _, out, _ = await command("list", "-o", "name")
    assert out == "apps/b\napps/d\n"
    assert (await command("delete", "-f", str(file), "--yes"))[0] == 0
    assert (await command("delete", "-f", str(file), "--yes"))[0] == 0


async def test_many_apps_are_dealt_with_by_labels_or_a_filter(command: Command, plane: Plane) -> None:
    for name in ("a", "b"):
        await command("create", name, "x:y", "-l", "tier=gold")
    await command("create", "c", "x:y")
    status, _, err = await command("stop", "--selector", "tier=gold")
    assert (status, "2 of 2 apps" in err) == (0, True)
    assert (await command("list", "--filter", "state = STOPPED", "-o", "name"))[1] == "apps/a\napps/b\n"
    status, _, err = await command("restart", "--filter", "name = *")
    assert (status, "1 of 3 apps" in err, "a: apps/a is stopped" in err) == (1, True, True)
    assert (await command("start", "-l", "tier=gold"))[0] == 0
    status, _, err = await command("stop", "-l", "tier=none")
    assert (status, "No app matches" in err) == (0, True)
    for arguments in (["stop"], ["stop", "c", "-l", "tier=gold"], ["delete", "c", "-l", "a=b", "--yes"]):
        status, _, err = await command(*arguments)
        assert (status, "--selector" in err) == (Exit.USAGE, True)
    assert (await command("delete", "-l", "tier=gold", "--drop"))[0] == Exit.USAGE
    assert (await command("delete", "-l", "tier=gold", "--drop", "--yes"))[0] == 0
    assert (await command("list", "-o", "name"))[1] == "apps/c\n"
    status, out, _ = await command("operations", "--all")
    assert ["2", "apps", "batch_delete"] in [line.split()[1:4] for line in out.splitlines()]


async def test_what_a_deleted_app_left_is_listed_attached_and_purged(command: Command, plane: Plane) -> None:
    await command("create", "shop", "shop:create_app")
    await command("delete", "shop")
    status, out, _ = await command("retained")
    assert (status, [line.split()[:2] for line in out.splitlines()]) == (
        0,
        [["APP", "STATE"], ["shop", "RETAINED"]],
    )
    status, out, _ = await command("retained", "attach", "shop", "wiki", "-o", "json")
    assert (status, json.loads(out)["entrypoint"]) == (0, "shop:create_app")
    assert (await command("retained", "attach", "shop", "other"))[0] == Exit.NOT_FOUND
    await command("delete", "wiki")
    status, out, _ = await command("retained", "-o", "name")
    assert (await command("retained", "purge", out.strip()))[0] == Exit.USAGE
    status, _, err = await command("retained", "purge", out.strip(), "--yes")
    assert (status, "removed" in err) == (0, True)
    assert (await command("retained", "-o", "json"))[1] == "[]\n"
    assert plane.nodes[0].disk.data == set()


async def test_of_many_apps_each_that_fails_and_each_that_is_not_done_is_told(
    command: Command, plane: Plane, tmp_path: Path
) -> None:
    plane.nodes[0].behaviours["bad:app"] = Behaviour(fails=("APP_STARTUP_FAILED", "It lacks a table."))
    plane.nodes[0].behaviours["slow:app"] = Behaviour(ready_after=60.0)
    file = tmp_path / "apps.yaml"
    file.write_text(
        "---\n".join(f"name: a{n}\nentrypoint: {'bad:app' if n in (3, 20) else 'x:y'}\n" for n in range(30))
    )
    status, out, err = await command("apply", "-f", str(file), "-o", "name")
    assert (status, len(out.splitlines())) == (Exit.FAILED, 28)
    assert "2 of 30 failed:" in err
    assert "  a3: It lacks a table." in err
    assert "  a20: It lacks a table." in err
    file.write_text("name: slow\nentrypoint: slow:app\n")
    status, _, err = await command("apply", "-f", str(file), "--timeout", "0.2")
    assert status == Exit.TIMED_OUT
    assert "1 of 1 are not done after 0.2 s; they go on." in err
    assert "`appsupervisor operations` shows them." in err


async def test_a_database_server_is_registered_by_a_variable_that_others_do_not_see(
    command: Command, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, err = await command("database-servers", "create", "one")
    assert (status, "Set DATABASE_ADMIN_URL to postgresql://" in err) == (Exit.USAGE, True)
    monkeypatch.setenv("DATABASE_ADMIN_URL", "postgresql://admin:secret@127.0.0.1:1/apps")
    status, out, err = await command("database-servers", "create", "one", "--max-apps", "9")
    assert (status, "0/9" in out, "secret" in out + err) == (0, True, False)
    monkeypatch.delenv("DATABASE_ADMIN_URL")
    for flags, told in (
        (("--template", "prepared", "--spare-databases", "2"), "prepared"),
        (("--max-apps", "8"), "0/8"),
        (("--template", ""), "0/8"),
    ):
        status, out, err = await command("database-servers", "update", "one", *flags, "-o", "wide")
        assert (status, told in out) == (0, True), err
    assert "prepared" not in out
    assert (await command("database-servers", "update", "one"))[0] == Exit.USAGE
    status, _, err = await command("database-servers", "update", "one", "--admin-url")
    assert (status, "Set DATABASE_ADMIN_URL" in err) == (Exit.USAGE, True)
    setting = "database.postgres.server=databaseServers/one"
    assert (await command("create", "shop", "shop:create_app", "--set", setting, "--no-wait"))[0] == 0
    status, _, err = await command("database-servers", "delete", "one")
    assert (status, "has the databases of 1 app:" in err) == (Exit.FAILED, True)


async def test_contexts_are_kept_and_private(command: Command, plane: Plane, tmp_path: Path) -> None:
    assert (await command("contexts", "set", "local", plane.address))[0] == 0
    assert (tmp_path / "contexts.yaml").stat().st_mode & 0o077 == 0
    _, out, _ = await command("contexts")
    assert out == f"* local  {plane.address}\n"
    assert (await command("list", "--context", "local", "--address", ""))[0] == 0
    assert (await command("contexts", "delete", "local"))[0] == 0
    (tmp_path / "contexts.yaml").write_text("- nonsense")
    status, _, err = await command("contexts")
    assert (status, "cannot be read" in err) == (Exit.USAGE, True)


def commands() -> list[tuple[str, str]]:
    found = []
    root = typer.main.get_command(program)

    def walk(path: list[str], node: object) -> None:
        for name, child in getattr(node, "commands", {}).items():
            found.append((" ".join([*path, name]), child.help or ""))
            walk([*path, name], child)

    walk([], root)
    return found


@pytest.mark.parametrize(("name", "text"), commands(), ids=[name for name, _ in commands()])
async def test_the_example_of_each_commands_help_works(
    name: str, text: str, command: Command, plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = re.search(r"Example: appsupervisor (.+)", text)
    assert found is not None, f"{name} has no example"
    if name in PROGRAMS:
        return  # tests/e2e/test_programs.py starts them
    monkeypatch.setattr("webbrowser.open", lambda _: True)
    example = found[1]
    movable = ["--set", "database.no_database={}"] if name == "move" else []
    assert (await command("create", "shop", "notes:create_app", "--set", "secret_env.A=x", *movable))[0] == 0
    if name == "move":
        await plane.node("environments/default/nodes/node-2")
    if name.startswith("nodes "):
        node = await plane.node("environments/default/nodes/node-1")
        if name == "nodes delete":
            await node.kill()
            await plane.node_state(node.node, Node.UNREACHABLE)
    if name == "recover":
        await plane.node("environments/default/nodes/node-2")
        home = plane.nodes[0]
        await home.kill()
        await plane.node_state(home.node, Node.UNREACHABLE)

        def give_up(tx: Transaction) -> None:  # not waited for
            record = tx.node(home.node)
            assert record is not None
            lease_ran_out(tx, record, Node.EXPIRED)

        plane.store.write(give_up).result()
    if name == "delete":
        await command("create", "wiki", "notes:create_app")
    if name.startswith("retained "):
        await command("delete", "shop")
    if name in {"environments delete", "environments update", "environments drain", "rebalance"}:
        await command("environments", "create", "staging")
    monkeypatch.setenv("DATABASE_ADMIN_URL", "postgresql://admin:secret@127.0.0.1:1/apps")
    if name in {"database-servers delete", "database-servers update", "environments create"}:
        await command("database-servers", "create", "main" if name.endswith("create") else "one")
    if name in {"contexts use", "contexts delete"}:
        await command("contexts", "set", "local", plane.address)
    if name.startswith("certificates"):
        issued = issue("shop.example.com", start=datetime.now(UTC) - timedelta(hours=1))
        (tmp_path / "fullchain.pem").write_text(issued.pem)
        (tmp_path / "privkey.pem").write_text(issued.key_pem)
        if name not in {"certificates", "certificates create"}:
            await command("certificates", "create", "shop", "-f", "fullchain.pem", "-k", "privkey.pem")
    (tmp_path / "apps.yaml").write_text("name: wiki\nentrypoint: notes:create_app\n")
    if "operations/ID" in example:
        plane.nodes[0].behaviours["slow:app"] = Behaviour(ready_after=30.0)
        await command("create", "slow", "slow:app", "--no-wait")
        _, out, _ = await command("operations", "-o", "name")
        example = example.replace("operations/ID", out.splitlines()[0])
    if name == "watch":  # it never ends: its first line will do
        app, state, *_ = await first_line(example, lambda: command("stop", "shop"))
        assert (app, state in {"STOPPING", "STOPPED"}) == ("shop", True)
        return
    status, _, err = await command(*shlex.split(example))
    assert status == (1 if name == "diff" else 0), err


async def first_line(example: str, cause: Callable[[], Awaitable[object]]) -> list[str]:
    """Run a command that follows; return the words of the first line that it writes of what `cause` does."""
    following = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli", *shlex.split(example), stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert following.stdout is not None
    try:
        await cause()
        return (await asyncio.wait_for(following.stdout.readline(), WITHIN)).decode().split()
    finally:
        following.terminate()
        await following.wait()


async def test_events_are_followed_as_they_come_and_those_of_all_apps_are_shown(
    command: Command, plane: Plane
) -> None:
    await command("create", "shop", "shop:create_app")
    status, out, _ = await command("events", "--filter", "type = Created")
    assert [line.split()[1:3] for line in out.splitlines()] == [["APP", "TYPE"], ["shop", "Created"]]
    status, _, err = await command("events", "nobody", "-f")
    assert (status, "nobody" in err) == (Exit.NOT_FOUND, True)
    following = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli", "events", "shop", "-f", "--limit", "1",
        stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert following.stdout is not None
    try:
        head = [(await asyncio.wait_for(following.stdout.readline(), WITHIN)).split() for _ in range(2)]
        assert head[0][:2] == [b"AGE", b"TYPE"]
        await command("stop", "shop")
        line = await asyncio.wait_for(following.stdout.readline(), WITHIN)
        assert b"StopRequested" in line
    finally:
        following.terminate()
        await following.wait()


async def test_top_and_describe_show_figures(command: Command, plane: Plane) -> None:
    for name in ("calm", "busy"):
        await command("create", name, "shop:create_app")
        app = await plane.get(f"apps/{name}")
        figures = InstanceFigures(requests_per_second=12.5 if name == "busy" else 0.5, memory_bytes=3 << 20)
        plane.nodes[0].set_figures(app.instances[0].name, figures)
    status, out, _ = await command("top", "--once")
    assert (status, [line.split()[0] for line in out.splitlines()]) == (0, ["APP", "busy", "calm"])
    assert "12.5" in out
    assert "3.0 MiB" in out
    status, out, _ = await command("top", "--once", "-f", "name = apps/calm", "-o", "json")
    assert [one["figures"]["requests_per_second"] for one in json.loads(out)] == [0.5]
    status, out, _ = await command("describe", "busy")
    assert "Figures" in out
    assert "12.5" in out


async def test_a_wait_that_is_over_tells_what_is_waited_for(command: Command) -> None:
    asked = ("create", "gpu", "gpu:create_app", "--set", "node_selector={gpu: y}", "--timeout", "0.5")
    status, _, err = await command(*asked)
    assert status == Exit.TIMED_OUT
    assert "apps/gpu: The only node of environments/default cannot take it: without the labels" in err


async def test_why_an_app_is_unhealthy_is_told(command: Command, plane: Plane) -> None:
    await command("create", "shop", "shop:create_app")
    app = await plane.get("apps/shop")
    plane.nodes[0].set_health(app.instances[0].name, Instance.Health.UNKNOWN)
    await plane.app("apps/shop", lambda app: app.health == Instance.Health.UNKNOWN)
    assert "cannot be heard" not in (await command("describe", "shop"))[1], "it was not yet asked"
    why = "Its health check fails. GET /nope: it answered 404."
    plane.nodes[0].set_health(app.instances[0].name, Instance.Health.UNHEALTHY, why)
    await plane.app("apps/shop", lambda app: app.health == Instance.Health.UNHEALTHY)
    _, out, _ = await command("describe", "shop")
    assert f"{app.instances[0].name.rpartition('/')[2]}: {why}" in " ".join(out.split())
    _, out, _ = await command("events", "shop", "-o", "json")
    told = [it for it in json.loads(out) if it["type"] == "HealthChanged"][-1]
    assert (told["reason"], told["message"]) == ("HealthCheckFailed", f"UNKNOWN to UNHEALTHY. {why}")


async def test_a_drain_tells_meanwhile_what_waits_and_why(command: Command, plane: Plane) -> None:
    await plane.node("environments/default/nodes/fake-2", http_address="127.0.0.1:8081")
    created = await command(
        "create", "two", "two:create_app", "--set", "database.no_database={}", "--set", "replicas=2"
    )
    assert created[0] == 0, created
    status, _, err = await command("nodes", "drain", "fake-2", "--timeout", "1")
    assert status == Exit.FAILED
    waits = "apps/two waits: The only node of environments/default cannot take it: with another replica"
    assert err.count(waits) == 1, err


async def test_an_operator_moves_an_app_drains_a_node_and_forgets_it(command: Command, plane: Plane) -> None:
    await plane.node("environments/default/nodes/fake-2", http_address="127.0.0.1:8081")
    await command("create", "shop", "shop:create_app", "--set", "database.no_database={}")
    await command("create", "wiki", "wiki:create_app")
    status, out, err = await command("explain", "shop")
    assert status == 0
    assert "Would go to environments/default/nodes/fake-" in err
    assert {line.split()[0] for line in out.splitlines()[1:]} == {"fake-1", "fake-2"}
    (home,) = {
        one["node"] for one in json.loads((await command("get", "shop", "-o", "json"))[1])["instances"]
    }
    other = ({"fake-1", "fake-2"} - {home.strip().rpartition("/")[2]}).pop()
    status, out, _ = await command("move", "shop", "--to", other, "-o", "json")
    assert (status, [one["node"].rpartition("/")[2] for one in json.loads(out)["instances"]]) == (0, [other])
    status, out, _ = await command("rebalance", "--dry-run", "--tolerance", "2")
    assert (status, out) == (0, "")
    status, out, _ = await command("rebalance", "-o", "json")
    # Whether there is anything to move is decided by where the two apps happen to be.
    assert (status, {move["state"] for move in json.loads(out)} <= {"MOVED", "LEFT_OUT"}) == (0, True)
    status, out, _ = await command("nodes", "cordon", "fake-1")
    assert (status, out.splitlines()[1].split()[:4]) == (0, ["fake-1", "default", "READY", "cordoned"])
    assert (await command("nodes", "uncordon", "default/fake-1", "-o", "name"))[0] == 0
    _, home, _ = await command("get", "wiki", "--jmespath", "instances[0].node")
    assert (await command("nodes", "drain", home.strip()))[0] == 0, "its data goes along"
    status, _, err = await command("nodes", "delete", "fake-1")
    assert status == Exit.FAILED
    assert "NODE_ALIVE" in err
    status, out, _ = await command(
        "environments", "update", "default", "--cordon", "--label", "tier=gold", "-o", "json"
    )
    assert (status, json.loads(out)["cordoned"], json.loads(out)["labels"]) == (0, True, {"tier": "gold"})
    status, out, _ = await command(
        "explain", "wiki", "--jmespath", "verdicts[0].obstacles[].reason", "-o", "json"
    )
    assert "ENVIRONMENT_CORDONED" in json.loads(out)
    status, out, _ = await command(
        "environments", "update", "default", "--default", "limits.max_threads=3", "--default",
        "limits.max_queued_requests=0", "--default", "isolation=THREAD", "-o", "json",
    )  # fmt: skip
    assert json.loads(out)["app_defaults"]["limits"] == {"max_threads": 3, "max_queued_requests": 0}
    status, out, _ = await command(
        "environments", "update", "default", "--default", "limits.max_threads=4", "--default", "isolation=",
        "-o", "json",
    )  # fmt: skip
    assert json.loads(out)["app_defaults"] == {"limits": {"max_threads": 4, "max_queued_requests": 0}}
    status, _, err = await command("environments", "drain", "default", "--yes", "--no-wait")
    assert status == 0
    operation = err.split()[0]
    status, _, err = await command("wait", operation)
    assert (status, "Stop: 2 of 2 apps done." in err) == (0, True)


async def test_certificates_are_uploaded_shown_replaced_and_forgotten(
    command: Command, tmp_path: Path
) -> None:
    now = datetime.now(UTC) - timedelta(hours=1)
    for number, days in ((1, 90), (2, 3)):
        issued = issue("shop.example.com", "*.example.org", start=now, days=days)
        (tmp_path / f"chain{number}.pem").write_text(issued.pem)
        (tmp_path / f"key{number}.pem").write_text(issued.key_pem)
    status, out, _ = await command("certificates", "create", "shop", "-f", "chain1.pem", "-k", "key1.pem")
    assert (status, "Valid" in out, "shop.example.com" in out) == (0, True, True)
    status, out, err = await command("certificates", "replace", "shop", "-f", "chain2.pem", "-k", "key1.pem")
    assert status == Exit.USAGE
    assert "private_key_pem must be the key of the first certificate" in err
    status, out, _ = await command("certificates", "replace", "shop", "-f", "chain2.pem", "-k", "key2.pem")
    assert (status, "Valid" in out) == (0, True)
    _, out, _ = await command("certificates", "describe", "shop")
    assert "*.example.org" in out
    assert "PRIVATE" not in out
    _, out, _ = await command("certificates", "-o", "json")
    assert [it["name"] for it in json.loads(out)] == ["certificates/shop"]
    status, _, err = await command("certificates", "create", "x", "-f", "nowhere.pem", "-k", "key1.pem")
    assert (status, "nowhere.pem cannot be read" in err) == (Exit.USAGE, True)
    assert (await command("certificates", "delete", "shop", "--yes"))[0] == 0
    assert "None is kept." in "".join((await command("certificates"))[1:])
