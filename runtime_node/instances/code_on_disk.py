"""What code there is to load for instances, and which of them run another than that.

Looks at the disk when somebody asks, on a thread of its own: one look serves all who ask for it before it
begins, so that it costs the same for one app of a code and for thousands.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime

from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, InstanceSpec
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as InstanceMessage
from runtime_node.instances.record import CODE_CHANGED, Run, timestamp
from runtime_node.instances.table import InstanceTable
from runtime_node.loader.code_files import CodeState
from services.rpc.errors import SupervisorError

LOOK_SECONDS = 1.0
"""How long anybody waits for a look: a disk that hangs must hold up neither a start nor an answer."""

SHORT = 12
"""Digits of a digest that a sentence has."""

log = logging.getLogger("runtime_node.instances")

Look = Callable[[str], CodeState | None]
"""Returns the state of the code that an entrypoint means, None if there is none. Blocks on the disk."""


class CodeOnDisk:
    """Belongs to the control loop, but for the looks themselves."""

    def __init__(self, look: Look, table: InstanceTable, seconds: float = LOOK_SECONDS) -> None:
        """`look` is called on one thread, `seconds` the longest that anybody waits for it."""
        self._look = look
        self._table = table
        self._seconds = seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="code")
        self._lock = threading.Lock()
        self._waiting: dict[str, Future[CodeState | None]] = {}
        """Looks that have not begun, by entrypoint."""
        self._first: dict[str, CodeState] = {}
        """By entrypoint: the code of installed packages that this process has loaded."""

    def close(self) -> None:
        """Begin no more looks. One that is under way ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def now(self, entrypoint: str) -> CodeState | None:
        """Return the code that a start would load; None if there is none, or it is not seen in time."""
        return (await self._seen({entrypoint})).get(entrypoint)

    def loaded(self, run: Run) -> CodeState | None:
        """Return the code that a run has loaded, given what was on disk when it began."""
        code = run.code
        if code is None or not code.installed or run.tier == InstanceSpec.PROCESS:
            return code
        # All apps of this process share the package, as it was when the first one of them came.
        return self._first.setdefault(run.spec.entrypoint, code)

    async def tell(self, instances: Iterable[InstanceMessage]) -> None:
        """Add condition `CodeChanged` to those whose instances run other code than is on disk."""
        running: list[tuple[InstanceMessage, str, CodeState]] = []
        for message in instances:
            instance = self._table.find(message.name)
            if instance is not None and instance.run is not None and instance.run.code is not None:
                running.append((message, instance.run.spec.entrypoint, instance.run.code))
        seen = await self._seen({entrypoint for _, entrypoint, _ in running})
        for message, entrypoint, runs in running:
            found = seen.get(entrypoint)
            if found is not None and found.digest != runs.digest:
                message.conditions.append(_changed(runs, found, message.isolation))

    async def _seen(self, entrypoints: Collection[str]) -> dict[str, CodeState]:
        """Return what looks that begin from now on find, of those that end in time."""
        looks = {entrypoint: asyncio.wrap_future(self._ask(entrypoint)) for entrypoint in entrypoints}
        if not looks:
            return {}
        # Futures that are waited for are not cancelled with who waits: others may wait for the same look.
        done, late = await asyncio.wait(looks.values(), timeout=self._seconds)
        if late:
            log.warning(
                "the disk was not looked at in time", extra={"action": "node.code_unseen", "looks": len(late)}
            )
        return {
            entrypoint: found
            for entrypoint, look in looks.items()
            if look in done and not look.cancelled() and (found := look.result()) is not None
        }

    def _ask(self, entrypoint: str) -> Future[CodeState | None]:
        with self._lock:
            look = self._waiting.get(entrypoint)
            if look is None:
                try:
                    look = self._waiting[entrypoint] = self._thread.submit(self._begin, entrypoint)
                except RuntimeError:  # closed: the node ends
                    look = Future()
                    look.set_result(None)
            return look

    def _begin(self, entrypoint: str) -> CodeState | None:
        with self._lock:
            # Who asks from here on may know of a change that this look no longer sees.
            self._waiting.pop(entrypoint, None)
        try:
            return self._look(entrypoint)
        except SupervisorError:
            return None  # it names no code, which its start tells
        except Exception:
            facts = {"action": "node.code_fault", "entrypoint": entrypoint}
            log.exception("a look at code failed", extra=facts)
            return None


def _changed(runs: CodeState, found: CodeState, tier: InstanceSpec.IsolationTier.ValueType) -> Condition:
    when = datetime.fromtimestamp(found.modified // 1_000_000_000, UTC)
    stays = found.installed and tier != InstanceSpec.PROCESS
    remedy = "it is loaded when the node is started anew" if stays else "RestartApp loads it"
    return Condition(
        type=CODE_CHANGED,
        status=Condition.MET,
        reason="OtherCodeOnDisk",
        message=(
            f"The code on disk ({found.digest[:SHORT]}, last changed {when:%Y-%m-%d %H:%M:%S} UTC) is other"
            f" than what runs ({runs.digest[:SHORT]}); {remedy}."
        ),
        last_transition_time=timestamp(found.modified / 1e9),
    )
