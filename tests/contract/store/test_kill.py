"""Promise 1: an acknowledged write survives kill -9 of the process at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from services.control_plane.store.sql_store import SqlCatalogStore, open_store
from services.rpc.errors import SupervisorError
from tests.contract.store.crash_writer import WRITERS
from tests.contract.store.samples import WAIT, check_change_log, contents, snapshot
from tests.postgresql import Server

ROUNDS = 16
OPENINGS = 5
REPLICA_ROUNDS = 6


class CrashWriter:
    """The program of `crash_writer`, and the kills of its children."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.contract.store.crash_writer"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def run(self, url: str, after: str, seconds: float, prefix: str = "a") -> list[tuple[str, int, int]]:
        """Kill a child `seconds` after its first line of a kind; return what it acknowledged."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{url} {prefix}\n")
        acknowledged = []
        kill: threading.Timer | None = None
        pid = 0
        for line in self.process.stdout:
            match line.split():
                case ["pid", number]:
                    pid = int(number)
                case ["ack", name, number, revision]:
                    acknowledged.append((name, int(number), int(revision)))
                case ["dead"]:
                    break
            if kill is None and line.startswith(after):
                kill = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
                kill.start()
        assert kill is not None
        kill.join(WAIT)
        return acknowledged

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(WAIT)


def check(store: SqlCatalogStore, newest: dict[str, int], prefix: str = "a") -> None:
    """Each app is at its last acknowledged number, or at the one that was under way; as a whole."""
    apps, operations = contents(store.mirror.apps), contents(store.mirror.operations)
    for writer in range(WRITERS):
        name = f"apps/{prefix}{writer}"
        known = newest.get(name, 0)
        numbers = [int(event.message) for event in store.events(name, 1_000_000)]
        assert numbers == list(range(len(numbers), 0, -1)), "each command is there once, in order"
        number = len(numbers)
        assert known <= number <= known + 1
        newest[name] = number
        assert sum(it.app == name for _, it in operations.values()) == number
        last = operations.get(f"operations/{name} {number}")
        if number % 7 == 0:
            assert name not in apps
        else:
            assert last is not None
            assert (apps[name][1].generation, apps[name][0]) == (number, last[0])
        remembered = store.write(
            lambda tx, name=name, number=number: [
                tx.request(f"{name} {it}") is not None for it in range(1, number + 2)
            ]
        ).result(WAIT)
        assert remembered == [True] * number + [False]
    with store._database.reader.connect() as connection:
        check_change_log(connection, store.mirror)


@pytest.mark.parametrize("seed", [1])
def test_what_was_acknowledged_survives_being_killed_at_any_moment(tmp_path: Path, seed: int) -> None:
    url = f"sqlite:///{tmp_path}/catalog.db"
    moments = random.Random(seed)
    writer = CrashWriter()
    newest: dict[str, int] = {}
    revisions = [0]
    try:
        for round_number in range(ROUNDS):
            # The first kills hit the making of the catalog and its opening, the others its writing.
            after = "pid" if round_number < OPENINGS else "ack"
            acknowledged = writer.run(url, after, moments.uniform(0.0, 0.05 if after == "pid" else 0.2))
            for name, number, _ in acknowledged:
                assert number == newest.get(name, 0) + 1
                newest[name] = number
            told = sorted(revision for _, _, revision in acknowledged)
            assert len(set(told)) == len(told)
            assert not told or told[0] > revisions[-1], "a revision is never given twice"
            store = open_store(url)
            try:
                check(store, newest)
                revisions.append(store.mirror.apps.revision)
            finally:
                store.close()
            assert not told or revisions[-1] >= told[-1]
    finally:
        writer.close()
    assert sum(newest.values()) >= ROUNDS - OPENINGS


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_two_replicas_lose_nothing_acknowledged_whoever_is_killed_or_cut_off(
    postgresql: Server, seed: int
) -> None:
    """Processes die at random moments, and between them all connections to the database, again and again."""
    moments = random.Random(seed)
    newest: dict[str, int] = {}
    revisions: list[int] = []
    with ExitStack() as stack:
        url = postgresql.create_database(stack)
        writers = {prefix: CrashWriter() for prefix in ("a", "b")}
        stack.enter_context(ExitStack()).callback(lambda: [writer.close() for writer in writers.values()])
        open_store(url).close()
        observer = open_store(url)
        stack.callback(observer.close)
        with ThreadPoolExecutor() as pool:
            for _ in range(REPLICA_ROUNDS):
                lives = [
                    pool.submit(writer.run, url, "ack", moments.uniform(0.0, 0.5), prefix)
                    for prefix, writer in writers.items()
                ]
                while not all(life.done() for life in lives):
                    postgresql.cut(url)
                    wait(lives, timeout=moments.uniform(0.05, 0.4))
                for name, number, revision in (ack for life in lives for ack in life.result()):
                    assert number in (newest.get(name, 0) + 1, newest.get(name, 0) + 2)
                    newest[name] = number
                    revisions += [revision] if revision else []
                caught_up(observer)
                for prefix in writers:
                    check(observer, newest, prefix)
        assert len(set(revisions)) == len(revisions), "a revision is never given twice"
        assert snapshot(observer.mirror) == snapshot(stack.enter_context(closing(open_store(url))).mirror)
    assert len(revisions) >= REPLICA_ROUNDS


def caught_up(store: SqlCatalogStore) -> None:
    """Have the observer know all there is, through the cuts that hit it too."""
    for _ in range(100):
        with suppress(SupervisorError):
            store.catch_up().result(WAIT)
            return
    pytest.fail("the database was not reached again")
