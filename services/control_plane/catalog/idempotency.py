"""Answers a repeated request with its first result, and one that is only validated without storing it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from services.control_plane.rules.names import request_id_violations
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import RequestRecord
from services.rpc.errors import SupervisorError, Violation, invalid_fields, time_is_up
from services.rpc.pipeline.call import Caller

REQUEST_ID_KEPT = 24 * 3600 * 1_000_000
"""How long a request id is remembered, µs."""

SYSTEM = "system"
"""The actor of what the control plane does by itself."""

M = TypeVar("M", bound=Message)


class _OnlyValidated(Exception):  # noqa: N818 - not a failure: it undoes a transaction
    """Carries the result of a command out of the transaction it undoes."""

    def __init__(self, result: Message) -> None:
        super().__init__()
        self.result = result


async def execute(
    store: CatalogStore,
    caller: Caller,
    request: Message,
    response_type: type[M],
    run: Callable[[Transaction], M],
    *,
    request_id: str = "",
    validate_only: bool = False,
) -> M:
    """Run a command durably and return its response, the first one if the request is a repeat.

    With `validate_only` everything is checked and nothing stored. Raises SupervisorError
    REQUEST_ID_REUSED when the id belongs to another request, OPERATION_DEADLINE_EXCEEDED when the
    call's time is up first (the command may still be carried out: repeat it with the same
    `request_id` to learn its result).
    """
    if violations := request_id_violations("request_id", request_id):
        raise invalid_fields(violations)

    def command(tx: Transaction) -> M:
        digest = _digest(request) if request_id else ""
        if request_id and (known := tx.request(request_id)):
            return response_type.FromString(_first_response(known, digest))
        response = run(tx)
        if validate_only:
            raise _OnlyValidated(response)
        if request_id:
            expire = tx.now + REQUEST_ID_KEPT
            tx.put_request(RequestRecord(request_id, digest, response.SerializeToString(), expire))
        return response

    stored = asyncio.wrap_future(store.write(command, request_id=request_id))
    try:
        # A command whose caller is gone is cancelled if it has not begun.
        return await asyncio.wait_for(stored, caller.timeout)
    except _OnlyValidated as validated:
        return validated.result  # type: ignore[return-value]
    except TimeoutError as late:
        raise time_is_up("its outcome was known; repeat it with the same request_id") from late


def _first_response(known: RequestRecord, digest: str) -> bytes:
    if known.digest != digest:
        raise SupervisorError(
            "REQUEST_ID_REUSED",
            f"request_id {known.request_id!r} was used for another request; take a new one.",
            violations=(Violation("request_id", "was used for another request"),),
            metadata={"request_id": known.request_id},
        )
    return known.response


def _digest(request: Message) -> str:
    bare = type(request)()
    bare.CopyFrom(request)
    bare.ClearField("request_id")
    wire = bare.SerializeToString(deterministic=True)
    return hashlib.sha256(request.DESCRIPTOR.full_name.encode() + b"\0" + wire).hexdigest()
