"""Starting, serving and stopping apps in processes of their own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec, Limits
from runtime_node.tiers.process.proxy import AppRaisedError
from runtime_node.tiers.runner import Usage
from services.rpc.errors import SupervisorError
from tests.eventually import eventually

from .conftest import Guests, alive, request


async def test_a_plain_asgi_app_serves_and_its_shutdown_runs(guests: Guests) -> None:
    app = await guests.start()
    assert guests.runner.tier == InstanceSpec.PROCESS
    response = await request(app)
    assert (response.status, response.body, response.complete) == (200, b"ok", True)
    report = await guests.stop(app)
    assert (report.error, report.cancelled_tasks, report.leaks) == (None, 0, ())
    assert (app.data_dir / "shutdown-ran").exists()
    assert not alive(app.pid)
    assert app.exits == []


async def test_the_app_sees_the_scope_of_the_front(guests: Guests) -> None:
    app = await guests.start()
    response = await request(
        app, "/scope", "a=1&b=%20", root_path="/apps/x", scheme="https",
        headers=[(b"host", b"shop.localhost"), (b"x-twice", b"1"), (b"x-twice", b"\xff")],
    )  # fmt: skip
    assert json.loads(response.body) == {
        "path": "/scope", "raw_path": "/scope", "root_path": "/apps/x", "scheme": "https",
        "http_version": "1.1",
        "method": "GET", "client": ["192.0.2.1", 4711], "query": "a=1&b=%20",
        "headers": [["host", "shop.localhost"], ["x-twice", "1"], ["x-twice", "\xff"]],
    }  # fmt: skip


async def test_the_environment_is_the_apps_and_nothing_of_the_nodes(
    guests: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPSUPERVISOR_TOKEN", "node-secret")
    monkeypatch.setenv("SOME_KEY", "node-secret")
    app = await guests.start(
        env={"MODE": "test"}, secrets={"API_KEY": "app-secret"}, database_url="sqlite:///app.db"
    )
    facts = json.loads((await request(app, "/env")).body)
    env = facts["env"]
    assert env["MODE"] == "test"
    assert env["API_KEY"] == "app-secret"
    assert env["DATABASE_URL"] == "sqlite:///app.db"
    assert env["DATA_DIR"] == str(app.data_dir)
    assert int(env["PORT"]) > 0
    assert env["PATH"]
    assert "node-secret" not in json.dumps(facts)
    assert "PYTHONPATH" not in env
    assert facts["cwd"] == str(app.data_dir)
    assert facts["umask"] == "0o77"
    assert facts["sid"] == facts["pid"] == app.pid
    assert not facts["grpc"]
    kinds = {target.partition(":")[0] for target in facts["fds"].values()}
    assert kinds <= {"/dev/null", "pipe", "socket", "anon_inode", "/memfd"}
    assert len(facts["fds"]) <= 20


async def test_a_secret_of_one_app_is_not_in_the_memory_of_the_next(guests: Guests) -> None:
    secret = "correct-horse-" + "battery"
    await guests.start(secrets={"KEY": secret})
    other = await guests.start()
    maps = Path(f"/proc/{other.pid}/maps").read_text()
    with Path(f"/proc/{other.pid}/mem").open("rb") as memory:  # noqa: ASYNC230
        for line in maps.splitlines():
            span, access, *_ = line.split()
            if "rw" in access and "[v" not in line:
                start, end = (int(part, 16) for part in span.split("-"))
                memory.seek(start)
                assert secret.encode() not in memory.read(end - start)


async def test_a_factory_gets_its_context_as_plain_data(
    guests: Guests, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    launch = guests.launch(
        "chaos:create_app", config={"size": 3, "tags": ["a"]}, env={"A": "1"}, secrets={"S": "s"},
        database_url="sqlite:///x.db", generation=7,
    )  # fmt: skip
    app = await guests.start_launch(launch)
    facts = json.loads((await request(app)).body)
    assert facts == {
        "config": {"size": 3, "tags": ["a"]}, "env": {"A": "1"}, "secrets": {"S": "s"}, "generation": 7,
        "database_url": "sqlite:///x.db", "instance": launch.spec.name,
        "data_dir": str(launch.context.data_dir),
    }  # fmt: skip
    mine = launch.context.logger.name
    await eventually(lambda: len([r for r in caplog.records if r.name == mine]) >= 2)
    levels = {record.getMessage(): record.levelno for record in caplog.records if record.name == mine}
    assert levels == {f"made {launch.context.app}": logging.INFO, "careful": logging.WARNING}


async def test_a_flask_app_with_real_environment_variables_runs(guests: Guests) -> None:
    app = await guests.start("flask_site:app", env={"GREETING": "hello"})
    response = await request(app, "/greet/ann", method="POST", chunks=[b"one", b"two"], root_path="")
    assert (response.status, response.body) == (200, b"hello ann onetwo ")


async def test_a_django_project_with_real_environment_variables_runs(guests: Guests) -> None:
    app = await guests.start(
        "djsite.wsgi:application", secrets={"SECRET_KEY": "k" * 50}, database_url="sqlite:///db.sqlite3"
    )
    assert json.loads((await request(app, "/users")).body) == {"users": 1}
    assert json.loads((await request(app, "/users")).body) == {"users": 2}
    assert (app.data_dir / "db.sqlite3").stat().st_mode & 0o077 == 0


async def test_a_wsgi_module_may_use_djangos_orm_as_it_is_imported(guests: Guests) -> None:
    app = await guests.start(
        "djsite.wsgi_with_orm:application",
        secrets={"SECRET_KEY": "k" * 50},
        database_url="sqlite:///db.sqlite3",
    )
    assert json.loads((await request(app, "/users")).body) == {"users": 1}


async def test_code_that_needs_a_running_loop_as_it_is_imported_gets_one(guests: Guests) -> None:
    app = await guests.start("needs_loop:app")
    assert (await request(app)).body == b"ok"


async def test_an_app_runs_on_the_loop_that_it_asks_for(guests: Guests) -> None:
    usual = await guests.start("loops:which")
    assert (await request(usual)).body.startswith(b"uvloop")
    app = await guests.start("loops:which", event_loop=InstanceSpec.ASYNCIO)
    assert (await request(app)).body == b"asyncio.unix_events"
    assert (await request(app, "/nested")).body == b"nested"
    response = await request(app, method="POST", chunks=[b"x" * 100_000])
    assert response.status == 200


async def test_a_blocked_loop_of_asyncio_is_interrupted_in_the_apps_code_alone(guests: Guests) -> None:
    budget = Limits(block_budget=Duration(nanos=300_000_000))
    app = await guests.start("loops:which", event_loop=InstanceSpec.ASYNCIO, limits=budget)
    with pytest.raises(SupervisorError) as caught:
        await request(app, "/sleep")
    assert caught.value.reason == "APP_BLOCKED_LOOP"
    assert (await request(app)).body == b"asyncio.unix_events"
    assert app.exits == []


@pytest.mark.parametrize(
    ("entrypoint", "reason"),
    [
        ("chaos", "ENTRYPOINT_MALFORMED"),
        ("not_there:app", "ENTRYPOINT_MODULE_NOT_FOUND"),
        ("chaos:nothing", "ENTRYPOINT_ATTRIBUTE_NOT_FOUND"),
        ("chaos:state_seen", "ENTRYPOINT_NOT_AN_APP"),
        ("chaos:broken_import_target", "APP_FACTORY_FAILED"),
        ("chaos:failing_startup", "APP_STARTUP_FAILED"),
        ("dies_at_import:app", "APP_CRASHED"),
    ],
)
async def test_a_failed_start_tells_its_reason_and_leaves_nothing(
    guests: Guests, entrypoint: str, reason: str
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    launch = guests.launch(entrypoint)
    with pytest.raises(SupervisorError) as caught:
        await guests.start_launch(launch)
    assert caught.value.reason == reason
    assert guests.exits[launch.context.app] == []
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # the zygote's link may have been made since


async def test_a_cancelled_start_leaves_no_process(guests: Guests) -> None:
    await guests.zygote.ready()
    launch = guests.launch("chaos:app", env={"X": "1"})
    starting = asyncio.create_task(guests.runner.start(launch))
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    # The fixture's end looks for processes and files that are left.
    await guests.start()


async def test_an_exception_of_the_app_is_that_requests_alone(guests: Guests) -> None:
    app = await guests.start()
    with pytest.raises(AppRaisedError, match="a fault of the app") as caught:
        await request(app, "/raise")
    assert "ValueError" in caught.value.detail
    with pytest.raises(AppRaisedError):
        await request(app, "/exit")
    assert (await request(app)).body == b"ok"
    assert app.exits == []


async def test_bodies_stream_both_ways_in_order(guests: Guests) -> None:
    app = await guests.start()
    chunks = [bytes([n % 256]) * 50_000 for n in range(200)]
    response = await request(app, "/echo", method="POST", chunks=chunks)
    assert response.body == b"".join(chunks)
    assert response.complete


async def test_a_large_body_comes_whole(guests: Guests) -> None:
    app = await guests.start()
    response = await request(app, "/big", str(20_000_000))
    assert len(response.body) == 20_000_000
    response = await request(app, "/echo", method="POST", chunks=[b"q" * 20_000_000])
    assert len(response.body) == 20_000_000


async def test_a_slow_reader_stops_the_app_not_the_node(guests: Guests) -> None:
    app = await guests.start()
    go_on = asyncio.Event()
    received = 0

    async def slowly(body: bytes) -> None:
        nonlocal received
        received += len(body)
        await go_on.wait()

    reading = asyncio.create_task(request(app, "/endless", on_body=slowly))
    path = app.data_dir / "sent"
    await eventually(path.exists)
    last = -1
    while (now := int(path.read_text() or 0)) != last:
        last = now
        await asyncio.sleep(0.2)
    assert last < 4_000_000
    assert received <= 65536
    assert (await request(app)).body == b"ok"
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def test_cancelling_a_request_cancels_the_apps_task(guests: Guests) -> None:
    app = await guests.start()
    waiting = asyncio.create_task(request(app, "/wait"))
    await eventually(lambda: app._guest.beat.active == 1)
    waiting.cancel()
    await eventually((app.data_dir / "cancelled").exists)
    await eventually(lambda: app._guest.beat.active == 0)


async def test_the_app_learns_that_its_client_is_gone(guests: Guests) -> None:
    app = await guests.start()
    gone = asyncio.Event()
    waiting = asyncio.create_task(request(app, "/wait-for-disconnect", disconnect=gone))
    await eventually(lambda: app._guest.beat.active == 1)
    gone.set()
    told = app.data_dir / "disconnected"
    await eventually(lambda: told.exists() and told.read_text())
    assert told.read_text() == "http.request http.disconnect"
    with pytest.raises(AppRaisedError):
        await waiting


async def test_a_connection_serves_one_request_after_another(guests: Guests) -> None:
    app = await guests.start()
    for _ in range(50):
        await request(app)
    assert len(app._guest.proxy._channels) == 1
    await asyncio.gather(*(request(app) for _ in range(50)))
    assert len(app._guest.proxy._channels) <= 32


async def test_a_burst_of_connections_to_a_busy_app_waits_for_it(guests: Guests) -> None:
    app = await guests.start()
    busy = asyncio.create_task(request(app, "/sleep", "0.6"))
    await eventually(lambda: app._guest.beat.active == 1)
    burst = await asyncio.gather(*(request(app) for _ in range(500)))
    assert {response.status for response in burst} == {200}
    assert (await busy).status == 200


async def test_a_stop_that_takes_too_long_ends_in_a_kill_and_says_so(guests: Guests) -> None:
    app = await guests.start(env={"SLOW_SHUTDOWN": "1"})
    report = await guests.stop(app, 0.3)
    assert report.error is not None
    assert report.error.reason == "APP_SHUTDOWN_FAILED"
    assert not alive(app.pid)


async def test_a_stop_cuts_what_is_still_running_and_counts_it(guests: Guests) -> None:
    app = await guests.start()
    waiting = [asyncio.create_task(request(app, "/wait")) for _ in range(3)]
    await eventually(lambda: app._guest.beat.active == 3)
    report = await guests.stop(app)
    assert report.cancelled_tasks == 3
    assert report.error is None
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(result) for result in results} == {SupervisorError}


async def test_usage_tells_cpu_and_private_memory(guests: Guests) -> None:
    app = await guests.start(limits=Limits(memory_bytes=512 << 20))
    before = app.usage()
    assert before.memory_bytes is not None
    assert 0 < before.memory_bytes < 40 << 20
    await request(app, "/gulp", str(50_000_000))
    assert before.cpu_seconds is not None

    async def spun() -> Usage:
        await request(app, "/spin", "0.3")
        app._guest._sampled = (0.0, before)
        return app.usage()

    # How much of the time it is given is the machine's to say.
    after = await eventually(spun, lambda usage: usage.cpu_seconds - before.cpu_seconds > 0.03)
    assert after.memory_bytes is not None
    assert after.memory_bytes - before.memory_bytes > 45_000_000
    assert after.loop_lag_seconds is not None
    assert after.loop_lag_seconds > 0.1


async def test_output_is_handed_over_line_by_line(guests: Guests) -> None:
    lines: list[tuple[str, str]] = []
    guests.runner._on_output = lambda context, stream, line: lines.append((stream, line))
    app = await guests.start()
    await request(app, "/flood", "500")
    await eventually(lambda: len(lines) >= 501)
    assert lines[0] == ("stdout", "starting up")
    assert lines[1:] == [("stdout", "w" * 100)] * 500


async def test_a_long_log_record_comes_whole_with_its_level_and_logger(
    guests: Guests, caplog: pytest.LogCaptureFixture
) -> None:
    app = await guests.start()
    await request(app, "/log", "8000")
    (record,) = await eventually(lambda: [r for r in caplog.records if r.levelno == logging.ERROR])
    assert record.origin == "library"
    assert record.getMessage() == "begin " + '"\n' * 8000 + " end"


async def test_a_flood_of_output_slows_the_guest_alone(guests: Guests) -> None:
    guests.runner._on_output = lambda context, stream, line: None
    noisy, quiet = await guests.start(limits=Limits()), await guests.start()
    flooding = asyncio.create_task(request(noisy, "/flood", "10000000"))
    for _ in range(100):
        assert (await request(quiet)).body == b"ok"
    # The quiet one was served while the other waits for its node to read.
    assert not flooding.done()
    noisy._guest.kill()
    with pytest.raises(SupervisorError):
        await flooding
