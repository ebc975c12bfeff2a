"""What becomes of a fake node's instances: each starts, fails and ends as scripted.

Data that is to go is removed with an app's last instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from runtime_node import rules
from runtime_node.instances.code_place import CodePlace
from runtime_node.instances.record import timestamp
from services.rpc.errors import CODES, SupervisorError
from services.spec.effective import effective_limits
from tests.fakes.instances import Behaviour, Hosted, copy_of, copy_of_spec, set_ready

if TYPE_CHECKING:
    from tests.fakes.runtime_node import FakeNode

APP_DIRS = (Path("/srv/apps"), Path("/srv/more"))
"""Where a fake node says that it looks for code."""


class InstanceLives:
    """Of one life of a node."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node
        self.hosted: dict[str, Hosted] = {}
        """What is here, by name."""
        self.code: dict[str, str] = {}
        """By entrypoint: what is in its files, if that is not the entrypoint itself."""
        self.purged: list[str] = []
        """Uids whose data was removed."""
        self._purges: set[str] = set()
        self._unpurged: dict[str, Hosted] = {}
        self._began = time.time()

    # --- begin ---

    def begin(self, spec: pb.InstanceSpec, *, start_now: bool) -> Hosted:
        """Have an instance here from now on, and start it unless it is dormant."""
        self._purges.discard(spec.app_uid)
        self.forget_unpurged(spec.app_uid)
        dormant = spec.activation == pb.InstanceSpec.ON_REQUEST and not start_now
        status = pb.Instance(
            name=spec.name,
            app_uid=spec.app_uid,
            node=self._node.node,
            incarnation=self._node.incarnation,
            generation=spec.generation,
            epoch=spec.epoch,
            state=pb.Instance.IDLE if dormant else pb.Instance.STARTING,
            health=pb.Instance.Health.UNKNOWN,
            isolation=spec.isolation or pb.InstanceSpec.SHARED,
            create_time=timestamp(time.time()),
        )
        set_ready(status, "Idle" if dormant else "Starting")
        hosted = self.hosted[spec.name] = Hosted(copy_of_spec(spec), status)
        hosted.tried = start_now and spec.activation == pb.InstanceSpec.ON_REQUEST
        if not dormant:
            hosted.task = asyncio.create_task(self.start(hosted))
        self._node.feed.publish(status)
        return hosted

    def restart(self, hosted: Hosted) -> None:
        """Start an instance once more."""
        if hosted.task is not None:
            hosted.task.cancel()
        hosted.status.restart_count += 1
        self.move(hosted, pb.Instance.STARTING, "Starting")
        hosted.task = asyncio.create_task(self.start(hosted))

    async def start(self, hosted: Hosted) -> None:
        """Go through a start, to RUNNING, back to IDLE after a trial, or to FAILED."""
        disk = self._node.disk
        behaviour = self._behaviour(hosted)
        limit = effective_limits(hosted.spec).start_timeout
        if behaviour.ready_after is None or behaviour.ready_after > limit:
            await asyncio.sleep(limit)
            self.fail(hosted, "APP_START_TIMEOUT", f"It was not ready within {limit:g} s.")
            return
        await asyncio.sleep(behaviour.ready_after)
        if behaviour.held is not None:
            await behaviour.held.wait()
        uid = hosted.spec.app_uid
        local = hosted.spec.database.WhichOneof("kind") in (None, "sqlite")
        if hosted.spec.requires_existing_data and local and uid not in disk.data:
            self.fail(hosted, "DATA_MISSING", "Its data is not here.")
            return
        if uid not in disk.data:
            disk.ran[uid] = []
        disk.left.discard(uid)
        disk.data.add(uid)
        disk.ran.setdefault(uid, []).append(f"{self._node.node.rpartition('/')[2]} e{hosted.spec.epoch}")
        disk.apps[uid] = rules.app_id(hosted.spec.name)
        if behaviour.fails is not None:
            self.fail(hosted, *behaviour.fails)
            return
        hosted.status.ready_time.CopyFrom(timestamp(time.time()))
        hosted.status.code.CopyFrom(self._code_of(hosted.spec.entrypoint))
        hosted.status.health = pb.Instance.Health.HEALTHY
        asleep = hosted.tried and not self._is_awake(hosted.spec.name.partition("/instances/")[0], hosted)
        self.move(hosted, pb.Instance.RUNNING, "Started")
        if asleep:
            hosted.status.health = pb.Instance.Health.UNKNOWN
            hosted.status.ClearField("code")
            self.move(hosted, pb.Instance.IDLE, "Idle")

    def _behaviour(self, hosted: Hosted) -> Behaviour:
        return self._node.behaviours.get(hosted.spec.entrypoint, Behaviour())

    def _is_awake(self, app: str, but: Hosted) -> bool:
        return any(
            name.startswith(f"{app}/instances/") and it is not but and it.status.state == pb.Instance.RUNNING
            for name, it in self.hosted.items()
        )

    # --- as it is told ---

    def move(
        self, hosted: Hosted, state: pb.Instance.State.ValueType, reason: str, message: str = ""
    ) -> None:
        """Give an instance another state, and tell of it."""
        hosted.status.state = state
        set_ready(hosted.status, reason, message)
        self._node.feed.publish(hosted.status)

    def fail(self, hosted: Hosted, reason: str, message: str) -> None:
        """Have an instance fail, and stay failed."""
        # A reason that this version does not know is a later node's: it is told as it is.
        known = SupervisorError(reason if reason in CODES else "APP_STARTUP_FAILED", message)
        told = CodePlace(self._node.node, APP_DIRS).located(known)
        error = pb.InstanceError(
            reason=reason,
            message=told.message,
            detail=f"{reason}: {message}",
            occur_time=timestamp(time.time()),
            metadata=told.metadata,
        )
        hosted.status.last_error.CopyFrom(error)
        hosted.status.health = pb.Instance.Health.UNHEALTHY
        self.move(hosted, pb.Instance.FAILED, reason, told.message)

    def told(self, hosted: Hosted) -> pb.Instance:
        """Return an instance as an answer tells it: also whether other code is on disk than runs."""
        told = copy_of(hosted.status)
        on_disk = self._code_of(hosted.spec.entrypoint)
        if told.HasField("code") and told.code.digest != on_disk.digest:
            told.conditions.add(
                type="CodeChanged",
                status=pb.Condition.MET,
                reason="OtherCodeOnDisk",
                message=f"The code on disk ({on_disk.digest[:12]}) is other than what runs.",
                last_transition_time=on_disk.modify_time,
            )
        return told

    def _code_of(self, entrypoint: str) -> pb.InstanceCode:
        content = self.code.get(entrypoint, entrypoint).encode()
        return pb.InstanceCode(digest=hashlib.sha256(content).hexdigest(), modify_time=timestamp(self._began))

    # --- end ---

    def stop(self, hosted: Hosted) -> None:
        """Begin to stop an instance, unless that is under way."""
        if hosted.status.state == pb.Instance.STOPPING:
            return
        if hosted.task is not None:
            hosted.task.cancel()
        hosted.status.health = pb.Instance.Health.UNKNOWN
        self.move(hosted, pb.Instance.STOPPING, "Stopping")
        hosted.task = asyncio.create_task(self._run_stop(hosted))

    async def stop_all(self, uid: str | None = None) -> None:
        """Stop all instances of an app, or of all apps, and wait until they are gone."""
        tasks = []
        for hosted in [it for it in self.hosted.values() if uid in (None, it.spec.app_uid)]:
            self.stop(hosted)
            if hosted.task is not None:
                tasks.append(hosted.task)
        if tasks:
            await asyncio.wait(tasks)

    async def _run_stop(self, hosted: Hosted) -> None:
        behaviour = self._behaviour(hosted)
        limit = effective_limits(hosted.spec).stop_timeout
        if behaviour.held is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(behaviour.held.wait(), limit)
        await asyncio.sleep(min(behaviour.stop_after, limit))
        self._end(hosted)

    def _end(self, hosted: Hosted) -> None:
        name, uid = hosted.spec.name, hosted.spec.app_uid
        del self.hosted[name]
        self._purge_if_last(uid)
        if uid in self._purges and not self._is_here(uid) and not self._node.draining:
            self.hosted[name] = self._unpurged[name] = hosted
            error = pb.InstanceError(
                reason="DATA_NOT_REMOVED",
                message=self._node.disk.stuck[uid],
                occur_time=timestamp(time.time()),
            )
            hosted.status.last_error.CopyFrom(error)
            self._node.feed.publish(hosted.status)
            return
        self._unpurged.pop(name, None)
        if self._node.draining:
            self._node.feed.obituaries[name] = pb.InstanceError(
                reason="NODE_DRAINING", message="Its node shut down.", occur_time=timestamp(time.time())
            )
        self._node.feed.remove(name)

    def _is_here(self, uid: str) -> bool:
        return any(h.spec.app_uid == uid and n not in self._unpurged for n, h in self.hosted.items())

    # --- data that goes with the last instance ---

    def purge(self, uid: str) -> None:
        """Have an app's data go: now, or with its last instance."""
        self._purges.add(uid)

    def look_at_purge(self, uid: str, name: str) -> None:
        """Remove data that is to go, where no instance is in the way. Raises SupervisorError if it stays."""
        self._purge_if_last(uid)
        if uid in self._purges and uid in self._node.disk.stuck:
            raise SupervisorError("DATA_NOT_REMOVED", self._node.disk.stuck[uid], resource=name)

    def end_unpurged(self, hosted: Hosted) -> bool:
        """Try once more to end an instance whose data could not be removed; return whether it is one."""
        if hosted.spec.name not in self._unpurged:
            return False
        self._end(hosted)
        return True

    def forget_unpurged(self, uid: str | None = None) -> None:
        """Give instances up that are here only because data could not be removed: an app's, or all."""
        for name in [n for n, h in self._unpurged.items() if uid in (None, h.spec.app_uid)]:
            del self._unpurged[name]
            if self.hosted.pop(name, None) is not None:
                self._node.feed.remove(name)

    def _purge_if_last(self, uid: str) -> None:
        if uid in self._purges and not self._is_here(uid) and uid not in self._node.disk.stuck:
            self._purges.discard(uid)
            self._node.disk.data.discard(uid)
            self._node.transfers.purge(uid)
            self.purged.append(uid)
            self._node.logs.entries.pop(uid, None)
            self._node.logs.look()
            self.forget_unpurged(uid)
