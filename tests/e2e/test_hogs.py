"""One hog after the other beside neighbours under load: what each tier contains, and where the wall is.

Only outcomes are asserted; what the neighbours' requests took is told by the table at the end of the run.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from google.protobuf import duration_pb2

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.runtime.v1 import runtime_environment_pb2 as runtime
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceSpec
from tests.e2e.neighbours import ROWS, Neighbours, Row, Seen
from tests.e2e.stack import DEADLINE, ROOT, Stack, eventually

SHARED, THREAD, PROCESS = InstanceSpec.SHARED, InstanceSpec.THREAD, InstanceSpec.PROCESS

# With its load it takes minutes: part of make chaos and make test-all, not of make test.
pytestmark = [pytest.mark.chaos, pytest.mark.slow]

NEIGHBOURS = {
    "one": SHARED,
    "two": SHARED,
    "three": SHARED,
    "four": THREAD,
    "five": PROCESS,
}
IN_ONE_PROCESS = {"one", "two", "three", "four"}
BUDGET = duration_pb2.Duration(nanos=300_000_000)
SOON = duration_pb2.Duration(nanos=50_000_000)
ENOUGH = 15
"""Requests to each neighbour that a row has at least."""
MEMORY = 96 << 20
BLOCKED, CRASHED, NO_MEMORY = "APP_BLOCKED_LOOP", "APP_CRASHED", "APP_OUT_OF_MEMORY"


@dataclass(frozen=True)
class Hog:
    """What a hog does in a tier, and what has to become of it. No `reason`: nothing happens to it."""

    what: str
    tier: InstanceSpec.IsolationTier.ValueType
    ask: str
    status: frozenset[int]
    reason: str = ""
    becomes: InstanceSpec.IsolationTier.ValueType | None = None
    entrypoint: str = "mischief:asked"
    times: int = 1
    limits: dict[str, Any] = field(default_factory=dict)
    wall: str = ""
    answer: str = ""
    """A part of the body it answers."""
    hurts: frozenset[str] = frozenset()
    """The neighbours whose requests fail: no tier's promise, but the documented wall."""

    def __str__(self) -> str:
        return f"{self.what}-{InstanceSpec.IsolationTier.Name(self.tier)}".replace(" ", "-")


def _blocking(
    what: str, tier: InstanceSpec.IsolationTier.ValueType, ask: str, status: int, **more: Any
) -> Hog:
    limits = {"block_budget": BUDGET}
    return Hog(
        what, tier, ask, frozenset({status}), BLOCKED, entrypoint="blockers:asked", limits=limits, **more
    )


def _refused(what: str, ask: str, why: str) -> Hog:
    """In the SHARED tier it is refused, with the way out."""
    return Hog(what, SHARED, ask, frozenset({403}), answer=why)


OK, ERROR = frozenset({200}), frozenset({500})
BROKEN = frozenset({502, 503})

HOGS = (
    _blocking("Python loop", SHARED, "do=spin&seconds=20", 504, times=3, becomes=THREAD),
    _blocking("time.sleep", SHARED, "do=sleep&seconds=20", 504, times=3, becomes=THREAD),
    _blocking(
        "lock held in C", SHARED, "do=hold&seconds=1.5", 200, becomes=PROCESS,
        wall="all in the node's process wait while it is held",
    ),
    _blocking("lock held in C", PROCESS, "do=hold&seconds=1.5", 504),
    Hog("memory", SHARED, "do=memory&count=192", OK, wall="memory_bytes is advisory here"),
    Hog(
        "memory", PROCESS, "do=memory&count=512", frozenset({500, 502, 503}), NO_MEMORY,
        limits={"memory_bytes": MEMORY},
    ),
    Hog("threads", SHARED, "do=threads&count=200", OK, answer="200 threads", wall="threads are unbounded"),
    Hog("threads", THREAD, "do=threads&count=200", OK, answer="200 threads", wall="threads are unbounded"),
    Hog("threads", PROCESS, "do=threads&count=200", OK, answer="200 threads"),
    Hog("files", SHARED, "do=files&count=2000", OK, wall="all share the process's limit of open files"),
    Hog("files", PROCESS, "do=files&count=2000", OK, answer="then OSError"),
    Hog("log flood", SHARED, "do=logs&count=20000", OK),
    Hog("log flood", PROCESS, "do=logs&count=20000", OK),
    _refused("fork", "do=fork", "fork the process"),
    Hog("fork", PROCESS, "do=fork", OK),
    _refused("os._exit", "do=_exit", "end the process"),
    Hog("os._exit", PROCESS, "do=_exit", BROKEN, CRASHED),
    Hog("sys.exit", SHARED, "do=exit", ERROR),
    Hog("sys.exit", PROCESS, "do=exit", ERROR),
    _refused("os.kill of itself", "do=kill", "send itself a signal"),
    Hog("os.kill of itself", PROCESS, "do=kill", BROKEN, CRASHED),
    _refused("signal.signal", "do=handle_signals", "handle signals"),
    Hog("signal.signal", PROCESS, "do=handle_signals", OK),
    _refused("stops the loop", "do=stop_loop", "stop the event loop"),
    Hog("stops the loop", PROCESS, "do=stop_loop", OK | BROKEN, CRASHED),
    _refused("closes the loop", "do=close_loop", "the event loop"),
    Hog("closes the loop", PROCESS, "do=close_loop", OK | BROKEN, CRASHED),
    Hog("os.environ", SHARED, "do=environment", OK, answer="HOG=was here, PATH=None"),
    Hog("os.environ", PROCESS, "do=environment", OK, answer="HOG=was here, PATH=None"),
    _refused("os.chdir", "do=change_directory", "change the working directory"),
    Hog("os.chdir", PROCESS, "do=change_directory", OK, answer="/"),
    Hog("patches json", PROCESS, "do=patch", OK),
    Hog("segfault", PROCESS, "do=segfault", BROKEN, CRASHED, entrypoint="blockers:asked"),
)  # fmt: skip


class Beside:
    """The stack, the neighbours on it, and how the node was before the first hog."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        for app, tier in NEIGHBOURS.items():
            stack.create(app, "neighbour:create_app", isolation=tier)
        self._hogs = 0
        self.neighbours = Neighbours(stack.http_port(), tuple(NEIGHBOURS))
        with self.among_neighbours("no hog yet"):
            self.let_loose(Hog("none", SHARED, "", OK))
            self.take_away()
        self.status = self.node_status()
        self.process = psutil.Process(stack.nodes["node-1"].pid)

    def among_neighbours(self, name: str) -> _Phase:
        return _Phase(self.neighbours, name)

    def node_status(self) -> runtime.RuntimeStatus:
        with self.stack.runtime() as node:
            return node.GetRuntimeStatus(runtime.GetRuntimeStatusRequest(), timeout=DEADLINE)

    def has_condition(self) -> dict[str, int]:
        return {
            "threads": self.process.num_threads(),
            "files": self.process.num_fds(),
            "processes": len(self.process.children(recursive=True)),
        }

    @property
    def hog(self) -> str:
        """The id of the newest hog's app; each has its own, and so its own timeline."""
        return f"hog-{self._hogs}"

    def let_loose(self, hog: Hog) -> None:
        self._hogs += 1
        self.stack.create(
            self.hog, hog.entrypoint, isolation=hog.tier, limits=runtime.Limits(**hog.limits),
            restart_policy=runtime.RestartPolicy(min_backoff=SOON, max_restarts=50),
        )  # fmt: skip

    def take_away(self) -> None:
        request = catalog.DeleteAppRequest(name=f"apps/{self.hog}")
        self.stack.wait(self.stack.apps.DeleteApp(request, timeout=DEADLINE))

    def instance(self) -> runtime.Instance | None:
        """Return the hog's newest instance, as the node tells it."""
        with self.stack.runtime() as node:
            request = runtime.ListInstancesRequest(parent=f"apps/{self.hog}")
            found = node.ListInstances(request, timeout=DEADLINE).instances
        return max(found, key=lambda one: (one.epoch, one.generation), default=None)

    def reasons(self) -> list[str]:
        """Return the reasons in the hog's timeline, newest first."""
        request = catalog.ListAppEventsRequest(parent=f"apps/{self.hog}", page_size=200)
        events = self.stack.apps.ListAppEvents(request, timeout=DEADLINE).app_events
        return [event.reason for event in events if event.reason.startswith("APP_")]

    def holds_no_more_than(self, before: dict[str, int]) -> bool:
        """Tell whether the node holds about what it held then; its pools may have grown a little."""
        now = self.has_condition()
        return (
            now["threads"] <= before["threads"] + 8
            and now["files"] <= before["files"] + 16
            and now["processes"] <= before["processes"]
        )


class _Phase:
    """What the neighbours see while the block runs, in `seen` afterwards."""

    def __init__(self, neighbours: Neighbours, name: str) -> None:
        self._neighbours = neighbours
        self._name = name
        self.seen: Seen

    def __enter__(self) -> _Phase:
        self._neighbours.enter(self._name)
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            eventually(lambda: self._neighbours.answered(self._name, ENOUGH), "the neighbours are answered")
            self.seen = self._neighbours.leave(self._name)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """Give neighbours under load on a node of their own, after a phase without a hog."""
    apps = tuple(ROOT / "tests/apps" / name for name in ("hogs", "neighbours", "node"))
    stack = Stack(tmp_path_factory.mktemp("hogs") / "stack", app_dirs=apps)
    beside = None
    try:
        beside = Beside(stack.start())
        with beside.among_neighbours("none") as phase:
            pass
        assert not phase.seen.errors
        ROWS.append(Row("none", "", phase.seen))
        yield beside
    finally:
        if beside is not None:
            beside.neighbours.end()
        stack.clean_up()


@pytest.mark.parametrize("hog", HOGS, ids=str)
def test_a_hog_costs_no_neighbour_a_request_and_leaves_nothing_behind(beside: Beside, hog: Hog) -> None:
    becomes = hog.becomes or hog.tier
    restarts = hog.reason in (CRASHED, NO_MEMORY) or becomes != hog.tier
    before = beside.has_condition()
    beside.let_loose(hog)
    try:
        with beside.among_neighbours(str(hog)) as phase:
            answers = [beside.stack.http(beside.hog, f"/?{hog.ask}") for _ in range(hog.times)]

            def settled() -> runtime.Instance | None:
                """Serving in the tier where it has to end up, and its timeline says why."""
                found = beside.instance()
                if found is None or (found.state, found.isolation) != (Instance.RUNNING, becomes):
                    return None
                if restarts and not found.restart_count:  # it is told as it was before
                    return None
                return found if hog.reason in beside.reasons() or not hog.reason else None

            found = eventually(settled, f"the hog serves in {becomes} because of {hog.reason!r}: {answers}")
            assert found is not None
        reasons = beside.reasons()
        ROWS.append(
            Row(
                hog.what, InstanceSpec.IsolationTier.Name(hog.tier), phase.seen,
                ", ".join(dict.fromkeys(str(status) for status, _ in answers)),
                f"{Instance.State.Name(found.state)} in {InstanceSpec.IsolationTier.Name(found.isolation)}"
                + (f", restarts {found.restart_count}" if found.restart_count else ""),
                reasons[0] if reasons else "", hog.wall,
            )
        )  # fmt: skip
        assert {status for status, _ in answers} <= hog.status, answers
        assert hog.answer in answers[-1][1]
        assert {app for app, errors in phase.seen.of_app.items() if errors} == hog.hurts, phase.seen.of_app
        assert (reasons[0] if reasons else "") == hog.reason
        assert (found.restart_count > 0) == restarts
    finally:
        beside.take_away()
    assert beside.node_status().incarnation == beside.status.incarnation
    eventually(lambda: beside.holds_no_more_than(before), f"the node holds no more than before: {before}")


def test_a_patched_library_is_patched_for_all_in_the_process_and_for_none_beyond(beside: Beside) -> None:
    """The wall: modules of shared libraries are one copy for all of SHARED and THREAD."""
    beside.let_loose(Hog("", SHARED, "", OK))
    try:
        what = "patches json in SHARED"
        with beside.among_neighbours(what) as phase:
            answer = beside.stack.http(beside.hog, "/?do=patch")
            eventually(lambda: beside.neighbours.failing(what) >= IN_ONE_PROCESS, "all of one process notice")
        assert beside.stack.http(beside.hog, "/?do=unpatch")[0] == 200
        wall = "libraries are one copy for all in the process"
        ROWS.append(Row("patches json", "SHARED", phase.seen, str(answer[0]), "RUNNING in SHARED", "", wall))
        assert {app for app, errors in phase.seen.of_app.items() if errors} == IN_ONE_PROCESS
    finally:
        beside.take_away()
    with beside.among_neighbours("put back") as phase:
        pass
    assert not phase.seen.errors


@pytest.mark.parametrize(
    ("what", "ask", "kind", "count", "wall"),
    [
        ("threads in a lock", "stuck_threads", "threads", 20, "a thread in C code cannot be ended"),
        (
            "files of a module",
            "files_of_module",
            "files",
            100,
            "code stays loaded, with its modules' globals",
        ),
    ],
    ids=["threads-in-a-lock", "files-of-a-module"],
)
def test_what_outlives_its_app_in_a_shared_process_fails_no_neighbour(
    beside: Beside, what: str, ask: str, kind: str, count: int, wall: str
) -> None:
    """The wall: this stays until the node ends, for nobody can end or close it but the app."""
    before = beside.has_condition()
    beside.let_loose(Hog("", SHARED, "", OK))
    try:
        with beside.among_neighbours(what) as phase:
            answer = beside.stack.http(beside.hog, f"/?do={ask}&count={count}")
    finally:
        beside.take_away()
    assert answer[0] == 200, answer
    ROWS.append(Row(what, "SHARED", phase.seen, "200", "deleted", "", wall))
    assert not phase.seen.errors
    assert beside.has_condition()[kind] >= before[kind] + count - 5
    assert beside.node_status().incarnation == beside.status.incarnation


def test_an_app_that_takes_every_file_of_the_node_costs_no_connected_neighbour_a_request(
    beside: Beside,
) -> None:
    """The wall: the table of open files is the process's. What is connected already goes on being served."""
    pid = beside.process.pid
    before, limits = beside.has_condition(), resource.prlimit(beside.process.pid, resource.RLIMIT_NOFILE)
    beside.let_loose(Hog("", SHARED, "", OK))
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (before["files"] + 100, limits[1]))
        with beside.among_neighbours("all files") as phase:
            answer = beside.stack.http(beside.hog, "/?do=files&count=2000")
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        beside.take_away()
    wall = "one app can take all files of the process"
    ROWS.append(Row("all files", "SHARED", phase.seen, str(answer[0]), "deleted", "", wall))
    assert "then OSError" in answer[1], answer
    assert not phase.seen.errors
    for app in NEIGHBOURS:
        assert beside.stack.http(app)[0] == 200, "a new connection is served again"
    assert beside.node_status().incarnation == beside.status.incarnation
    eventually(lambda: beside.holds_no_more_than(before), f"the node holds no more than before: {before}")


def test_a_native_crash_in_a_shared_process_ends_the_node_and_all_come_back(beside: Beside) -> None:
    """The wall: nothing in a process survives a segmentation fault; whoever watches the node restarts it."""
    beside.let_loose(Hog("", SHARED, "", OK, entrypoint="blockers:asked"))
    node = beside.stack.nodes["node-1"]
    with beside.among_neighbours("segfault in SHARED") as phase:
        answer = beside.stack.http(beside.hog, "/?do=segfault")
        eventually(lambda: not node.running(), "the node has ended")
        node.start()
        for app in NEIGHBOURS:
            eventually(lambda app=app: beside.stack.http(app)[0] == 200, f"{app} serves again")
    wall = "a native crash ends the node's process"
    ROWS.append(Row("segfault", "SHARED", phase.seen, str(answer[0] or "none"), "back, new node", "", wall))
    assert answer[0] == 0
    assert phase.seen.errors
    assert beside.node_status().incarnation != beside.status.incarnation
    with beside.among_neighbours("after the crash") as phase:
        pass
    assert not phase.seen.errors
