"""The target's half: an app's data received from the node that offers it, then the rest of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol, TypeAlias

from appsupervisor.runtime.v1 import data_transfers_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.instances.databases import Databases
from runtime_node.instances.record import error_message
from runtime_node.instances.table import InstanceTable
from runtime_node.travel.staging import Staging
from services.rpc.background import background
from services.rpc.errors import SupervisorError

log = logging.getLogger("runtime_node.travel")

SILENCE_SECONDS = 10.0
"""A stream that brings nothing for so long has broken off."""

MAX_EPOCHS = 10_000
"""Apps whose data has come here of which that is remembered."""

Receipt = pb.ReceiveDataResponse

Messages: TypeAlias = AsyncGenerator[pb.ReadDataResponse, None]


Tier: TypeAlias = InstanceSpec.IsolationTier.ValueType

CodeAhead: TypeAlias = Callable[[str, Tier], Awaitable[Callable[[], None]]]
"""Imports what an entrypoint names, as far as a tier allows; returns what lets it go."""


class Source(Protocol):
    """Reads what another node offers."""

    def __call__(self, address: str, request: pb.ReadDataRequest, silence: float) -> Messages:
        """Yield the messages of ReadData; raise SupervisorError when it refuses, breaks off or is silent."""
        ...


class _Receiving:
    """One app's data on its way here."""

    def __init__(self, staging: Staging, session: str, clock: Callable[[], float]) -> None:
        self.staging = staging
        self.told = Receipt(state=Receipt.COPYING, session=session)
        self.task: asyncio.Task[None] | None = None
        self.begun = False
        self._let_go: Callable[[], None] | None = None
        self._path, self._offset = "", 0
        self._clock = clock
        self._seconds = 0.0

    async def copy(self, messages: Messages) -> None:
        """Take a copy in, from where the one before broke off. Raises OSError and SupervisorError."""
        began, before = self._clock(), self._seconds
        if not self.begun:
            await asyncio.to_thread(self.staging.create)
            self.begun = True
        async with aclosing(messages):
            async for message in messages:
                await self._take(message)
                self.told.received_bytes += len(message.block.data)
                self._seconds = before + self._clock() - began
                self.told.copy_duration.FromMicroseconds(int(self._seconds * 1e6))
        await asyncio.to_thread(self.staging.sync)

    async def finish(self, messages: Messages, freeze_id: str) -> None:
        """Take in what a freeze has left, and put it all in its place."""
        began, rest = self._clock(), 0
        self.staging.begin_pass()
        end = pb.ReadDataResponse.End()
        async with aclosing(messages):
            async for message in messages:
                await self._take(message)
                rest += len(message.block.data)
                if message.HasField("end"):
                    end = message.end
        if end.freeze_id != freeze_id:
            raise SupervisorError("DATA_NOT_MOVED", "What was read is not of the freeze that is meant.")
        await asyncio.to_thread(self.staging.finish, freeze_id)
        self.told.state, self.told.freeze_id, self.told.rest_bytes = Receipt.ARRIVED, freeze_id, rest
        self.told.rest_duration.FromMicroseconds(int((self._clock() - began) * 1e6))

    async def import_code(self, fetch: CodeAhead, entrypoint: str, isolation: Tier) -> None:
        """Have the code in memory, or tell why it cannot be, until `let_go`."""
        if not entrypoint or self._let_go is not None:
            return
        try:
            self._let_go = await fetch(entrypoint, isolation)
            self.told.ClearField("code_error")
        except SupervisorError as failure:
            self.told.code_error.CopyFrom(error_message(failure, time.time()))

    def let_go(self) -> None:
        """Keep the code no longer than those who run it."""
        let_go, self._let_go = self._let_go, None
        if let_go is not None:
            let_go()

    def resumed(self, ticket: bytes) -> pb.ReadDataRequest:
        """Return the request that goes on where the copy broke off."""
        return pb.ReadDataRequest(ticket=ticket, path=self._path, offset=self._offset)

    async def _take(self, message: pb.ReadDataResponse) -> None:
        if message.session and message.session != self.told.session:
            raise SupervisorError("TICKET_INVALID", "The ticket was of another session.")
        if message.total_bytes:
            self.told.total_bytes = message.total_bytes
        if message.entries:
            await asyncio.to_thread(self.staging.take, message.entries)
        if message.HasField("block"):
            block = message.block
            await asyncio.to_thread(self.staging.write, block)
            self._path, self._offset = block.path, block.offset + len(block.data)


class Receipts:
    """What is being received, by app uid. Belongs to the control loop; the disk is waited for elsewhere."""

    def __init__(
        self,
        databases: Databases,
        table: InstanceTable,
        source: Source,
        *,
        is_doomed: Callable[[str, str], bool],
        code_ahead: CodeAhead,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_doomed` tells, by app id and uid, whether data of an app here is being removed."""
        self._databases = databases
        self._table = table
        self._source = source
        self._clock = clock
        self._is_doomed = is_doomed
        self._code_ahead = code_ahead
        self._receiving: dict[str, _Receiving] = {}
        self._epochs: dict[str, int] = {}

    def epoch(self, uid: str) -> int:
        """Return the epoch under which an app's data last came in this life of the node; 0 for never."""
        return self._epochs.get(uid, 0)

    def told(self, uid: str) -> Receipt:
        """Return how far an app's data is."""
        known = self._receiving.get(uid)
        told = Receipt()
        told.CopyFrom(known.told if known is not None else Receipt(state=Receipt.ABSENT))
        return told

    async def begin(
        self,
        app: str,
        uid: str,
        session: str,
        address: str,
        ticket: bytes,
        epoch: int,
        *,
        entrypoint: str = "",
        isolation: Tier = InstanceSpec.ISOLATION_TIER_UNSPECIFIED,
    ) -> Receipt:
        """Begin to copy, or go on where it broke off; what is being copied under that session goes on.

        The code of an `entrypoint` is imported meanwhile: COPIED is told once both are here.

        Raises INSTANCE_EXISTS, and DATA_NOT_MOVED while data of the app here is being removed.
        """
        self._check_absent(app, uid)
        if self._is_doomed(app, uid):
            raise SupervisorError(
                "DATA_NOT_MOVED", f"Former data of apps/{app} is being removed here.", resource=f"apps/{app}"
            )
        self._epochs[uid] = max(epoch, self._epochs.pop(uid, 0))
        if len(self._epochs) > MAX_EPOCHS:
            del self._epochs[next(iter(self._epochs))]
        known = self._receiving.get(uid)
        if known is not None and (
            known.told.session != session or known.told.state not in (Receipt.INTERRUPTED, Receipt.COPIED)
        ):
            if known.told.session == session and known.told.state == Receipt.COPYING:
                return self.told(uid)
            await self._forget(uid, known)
            known = None
        if known is None:
            staging = Staging(self._databases, app, uid)
            known = self._receiving[uid] = _Receiving(staging, session, self._clock)
        if known.told.state != Receipt.COPIED:
            known.told.state, known.told.message = Receipt.COPYING, ""
            code = partial(known.import_code, self._code_ahead, entrypoint, isolation)
            known.task = background(self._copy(app, known, address, ticket, code), f"receive {app}")
        return self.told(uid)

    async def _copy(
        self,
        app: str,
        receiving: _Receiving,
        address: str,
        ticket: bytes,
        import_code: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        told = receiving.told
        importing = background(import_code(), f"import {app}")
        try:
            request = receiving.resumed(ticket)
            await receiving.copy(self._source(address, request, SILENCE_SECONDS))
            await importing
        except SupervisorError as failure:
            told.state, told.message = Receipt.INTERRUPTED, failure.message
        except OSError as fault:
            told.state, told.message = Receipt.INTERRUPTED, _why(fault)
        else:
            told.state = Receipt.COPIED
        finally:
            if told.state == Receipt.COPYING:
                told.state = Receipt.INTERRUPTED
            if not importing.done():
                importing.cancel()  # not asked for again before the copy goes on
                await asyncio.wait({importing})
        log.info(
            "data copied" if told.state == Receipt.COPIED else f"copying data broke off: {told.message}",
            extra={"action": "travel.copied" if told.state == Receipt.COPIED else "travel.broken_off",
                   "app": app, "bytes": told.received_bytes},
        )  # fmt: skip

    async def finish(self, app: str, uid: str, address: str, ticket: bytes, freeze_id: str) -> Receipt:
        """Receive the rest of a freeze, and return once all of it is in its place, durably.

        Goes on if the caller is cancelled. Raises DATA_NOT_MOVED, after which nothing of it is in its place.
        """
        self._check_absent(app, uid)
        known = self._receiving.get(uid)
        if known is not None and known.told.freeze_id == freeze_id:
            return self.told(uid)
        if known is None or known.told.state != Receipt.COPIED or known.task is None or not known.task.done():
            raise SupervisorError("DATA_NOT_MOVED", "What was to come before the rest is not here.")
        known.task = background(self._finish(app, known, address, ticket, freeze_id), f"receive {app}")
        await asyncio.shield(known.task)
        if known.told.freeze_id != freeze_id:
            await self._forget(uid, known)
            raise SupervisorError("DATA_NOT_MOVED", known.told.message or "It was called off.")
        return self.told(uid)

    async def _finish(
        self, app: str, receiving: _Receiving, address: str, ticket: bytes, freeze_id: str
    ) -> None:
        told = receiving.told
        # Until all of it is there what is here is neither as it was copied nor as it is now.
        told.state = Receipt.ABSENT
        try:
            request = pb.ReadDataRequest(ticket=ticket)
            await receiving.finish(self._source(address, request, SILENCE_SECONDS), freeze_id)
        except SupervisorError as failure:
            told.message = failure.message
        except OSError as fault:
            told.message = _why(fault)
        done = told.freeze_id == freeze_id
        log.info(
            "data arrived" if done else f"the rest of the data is missing: {told.message}",
            extra={"action": "travel.arrived" if done else "travel.rest_missing", "app": app,
                   "bytes": told.rest_bytes},
        )  # fmt: skip

    async def discard(self, uid: str) -> None:
        """Receive an app's data no longer, and remove what has come and is not in its place."""
        known = self._receiving.get(uid)
        if known is not None:
            await self._forget(uid, known)

    def settle(self, uid: str) -> bool:
        """Note that an instance of an app is accepted here; tell whether it came with its data."""
        known = self._receiving.get(uid)
        arrived = known is not None and known.told.state == Receipt.ARRIVED
        if arrived:
            self._receiving.pop(uid).let_go()
        return arrived

    async def close(self) -> None:
        """End all that is under way: the node shuts down."""
        for known in self._receiving.values():
            if known.task is not None:
                known.task.cancel()
        tasks = [it.task for it in self._receiving.values() if it.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        for known in self._receiving.values():
            known.let_go()

    async def _forget(self, uid: str, known: _Receiving) -> None:
        if known.task is not None:
            known.task.cancel()
            await asyncio.gather(known.task, return_exceptions=True)
        known.let_go()
        if self._receiving.get(uid) is known:
            del self._receiving[uid]
        await asyncio.to_thread(known.staging.discard)

    def _check_absent(self, app: str, uid: str) -> None:
        if any(instance.uid == uid for instance in self._table.of_app(app)):
            raise SupervisorError(
                "INSTANCE_EXISTS", f"An instance of apps/{app} is here.", resource=f"apps/{app}"
            )


def _why(fault: OSError) -> str:
    return f"It cannot be kept here: {fault.strerror or type(fault).__name__}."
