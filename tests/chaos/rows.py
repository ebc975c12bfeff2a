"""Clients that write numbered rows to an app and read them back meanwhile, and judge every answer.

What is judged: an acknowledged row is there ever after, and once; what one read has shown no later one lacks;
of a CONSISTENT app no copy computes an answer after its successor's first.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.chaos.fleet import CLIENT, HTTP_PORT, NODES, Fleet
from tests.e2e.stack import DEADLINE, eventually
from tests.e2e.visitors import Visitors

_NUMBERS = itertools.count(1)

PATIENCE = 4.0
"""Seconds for which a client waits for an answer."""


@dataclass(frozen=True)
class Told:
    """One answer of an app's own."""

    epoch: int
    at: float
    """When it was computed, by the clock that all hosts of this machine share."""
    body: Any


@dataclass(frozen=True)
class Answer:
    """The head of an answer, whoever gave it."""

    status: int
    reason: str
    retry_after: str


class Visitor:
    """Asks one node for one app, from the client's host, one request at a time."""

    def __init__(self, fleet: Fleet, app_id: str, node: str) -> None:
        self._address = fleet.network.addresses[node]
        self._app_id = app_id
        self._asks = ThreadPoolExecutor(1, initializer=fleet.network.enter, initargs=(CLIENT,))

    def answer(self, method: str, patience: float = DEADLINE) -> Answer:
        """Return how a request is answered; raises OSError where it is not within `patience` seconds."""
        return self._asks.submit(self._ask, method, patience).result()

    def _ask(self, method: str, patience: float) -> Answer:
        connection = http.client.HTTPConnection(self._address, HTTP_PORT, timeout=patience)
        with contextlib.closing(connection):
            path = f"/?n={next(_NUMBERS)}" if method == "POST" else "/"
            connection.request(method, path, headers={"Host": f"{self._app_id}.localhost"})
            answer = connection.getresponse()
            answer.read()
            told = answer.headers
            return Answer(answer.status, told["x-appsupervisor-reason"] or "", told["retry-after"] or "")

    def close(self) -> None:
        """Ask no more."""
        self._asks.shutdown()


class Rows(Visitors):
    """A writer and a reader of one app; a context in which they are at work. Judge it after that."""

    def __init__(
        self, fleet: Fleet, app_id: str, *, keeps: bool = True, nodes: Sequence[str] = NODES
    ) -> None:
        """`keeps`: whether the app has a database. `nodes` are asked in turn."""
        self._fleet = fleet
        self.app_id = app_id
        self._keeps = keeps
        self._nodes = nodes
        # Shared by all tests of a fleet: no number is written twice.
        self._numbers = _NUMBERS
        self.acknowledged: set[int] = set()
        self._shown: set[int] = set()
        """What was acknowledged, or shown by a read: what each read that begins now must show."""
        self.wrong: list[str] = []
        self.answers: dict[int, list[float]] = collections.defaultdict(list)
        """When each epoch computed its answers."""
        self.refusals: collections.Counter[str] = collections.Counter()
        self.longest_pause = 0.0
        """Seconds between two acknowledged rows."""
        super().__init__(partial(self._visit, self._writes()), partial(self._visit, self._reads()))

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        assert not any(thread.is_alive() for thread in self._threads)

    def go_on(self, by: int = 5, within: float = 2 * DEADLINE) -> None:
        """Wait until some more rows are acknowledged."""
        before = len(self.acknowledged)
        eventually(
            lambda: len(self.acknowledged) >= before + by,
            f"rows of {self.app_id} are written; refused: {self.refusals}", within,
        )  # fmt: skip

    def _visit(self, step: Callable[[], None]) -> None:
        self._fleet.network.enter(CLIENT)
        while not self._ended.wait(0.02):
            try:
                step()
            except Exception as failure:
                self.wrong.append(f"a client failed: {failure!r}")
                raise

    def _writes(self) -> Callable[[], None]:
        nodes = itertools.cycle(self._nodes)
        at = next(nodes)
        last = time.monotonic()

        def write() -> None:
            nonlocal at, last
            number = next(self._numbers)
            # Never sent twice: whether a number that was not acknowledged is there says nothing.
            if (told := self._send("POST", f"/?n={number}", at)) is None:
                at = next(nodes)
                return
            now = time.monotonic()
            self.longest_pause, last = max(self.longest_pause, now - last), now
            self.answers[told.epoch].append(told.at)
            if self._keeps:
                self.acknowledged.add(number)
                self._shown.add(number)
            else:
                self.acknowledged.add(number)

        return write

    def _reads(self) -> Callable[[], None]:
        nodes = itertools.cycle(self._nodes)

        def read() -> None:
            if self._keeps:
                self._read(next(nodes), PATIENCE)
            elif (told := self._send("GET", "/", next(nodes))) is not None:
                self.answers[told.epoch].append(told.at)

        return read

    def _read(self, node: str, patience: float) -> Told | None:
        expected = frozenset(self._shown)
        told = self._send("GET", "/", node, patience)
        if told is None:
            return None
        self.answers[told.epoch].append(told.at)
        seen = collections.Counter(numbers(told.body))
        lost, twice = expected - seen.keys(), [number for number, times in seen.items() if times > 1]
        if lost:
            self.wrong.append(
                f"epoch {told.epoch} at {node} lacks {sorted(lost)[:20]} of {len(expected)} rows"
            )
        if twice:
            self.wrong.append(f"epoch {told.epoch} at {node} has rows twice: {twice[:20]}")
        self._shown |= seen.keys()
        return told

    def _send(self, method: str, path: str, node: str, patience: float = PATIENCE) -> Told | None:
        """Send one request and return the app's answer; take note of any other."""
        connection = http.client.HTTPConnection(
            self._fleet.network.addresses[node], HTTP_PORT, timeout=patience
        )
        try:
            connection.request(method, path, headers={"Host": f"{self.app_id}.localhost"})
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as broken:
            self.refusals[f"{type(broken).__name__}"] += 1
            return None
        finally:
            connection.close()
        if answer.status != 200:
            self.refusals[f"{answer.status} {answer.headers['x-appsupervisor-reason'] or 'of the app'}"] += 1
            return None
        told = json.loads(body)
        return Told(told["epoch"], told["at"], told["told"])

    def judge(self, home: str, *, one_writer: bool = False, leased: bool = False) -> None:
        """Look at everything, at the node where the app is, once all is well again.

        `one_writer`: each epoch's rows are all behind those of the epochs before. `leased`: so are the
        moments at which answers were computed.
        """
        judged: list[BaseException | None] = []

        def look() -> None:
            self._fleet.network.enter(CLIENT)
            try:
                if self._keeps:
                    eventually(lambda: self._read(home, DEADLINE), f"{self.app_id} tells its rows at {home}")
                if one_writer:
                    history = self._send("GET", "/history", home, DEADLINE)
                    assert history is not None, self.refusals
                    epochs = [epoch for epoch, _ in history.body]
                    assert epochs == sorted(epochs), f"two writers at once: {runs(epochs)}"
            except BaseException as failure:
                judged.append(failure)
            else:
                judged.append(None)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(3 * DEADLINE)
        assert judged, "nothing could be looked at"
        if judged[0] is not None:
            raise judged[0]
        assert not self.wrong, (self.app_id, self.wrong[:5], len(self.wrong))
        if leased:
            spans = {epoch: (min(times), max(times)) for epoch, times in sorted(self.answers.items())}
            for (older, (_, last)), (newer, (first, _)) in itertools.pairwise(spans.items()):
                assert last < first, f"epoch {older} computed an answer {last - first:.3f} s after {newer}"

    def summary(self) -> str:
        """Say what the clients saw, in a line."""
        return (
            f"{self.app_id}: {len(self.acknowledged)} rows, longest pause {self.longest_pause:.1f} s, "
            f"epochs {sorted(self.answers)}, not answered: {dict(self.refusals)}"
        )


def numbers(told: str) -> list[int]:
    """Return the numbers of `1-5,7-7`."""
    found: list[int] = []
    for part in filter(None, told.split(",")):
        first, last = part.split("-")
        found.extend(range(int(first), int(last) + 1))
    return found


def runs(epochs: Sequence[int]) -> list[tuple[int, int]]:
    """Return each epoch with how many of its rows are together, in their order."""
    return [(epoch, len(list(group))) for epoch, group in itertools.groupby(epochs)]
