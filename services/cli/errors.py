"""Turns what went wrong into one sentence with a remedy, and into an exit code that scripts can use."""

from __future__ import annotations

from enum import IntEnum

import grpc
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from services.rpc.status import DETAILS_KEY


class Exit(IntEnum):
    """What the program's exit status says."""

    DONE = 0
    FAILED = 1
    """What was asked for was carried out and did not succeed, or was refused."""
    USAGE = 2
    """The command line, a manifest or a field of a request is wrong."""
    NOT_FOUND = 3
    TIMED_OUT = 4
    """What was asked for goes on; this program has stopped waiting."""
    UNREACHABLE = 5
    """No server answered; trying again may help."""
    CONFLICT = 6
    """It exists already, or has changed since it was read."""


class CliError(Exception):
    """Ends the program: `sentence` for people, `code` for scripts, `remedy` what to do next."""

    def __init__(
        self, sentence: str, code: Exit = Exit.FAILED, *, reason: str = "", remedy: str = ""
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code
        self.reason = reason
        self.remedy = remedy


_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: Exit.USAGE,
    grpc.StatusCode.NOT_FOUND: Exit.NOT_FOUND,
    grpc.StatusCode.DEADLINE_EXCEEDED: Exit.TIMED_OUT,
    grpc.StatusCode.UNAVAILABLE: Exit.UNREACHABLE,
    grpc.StatusCode.ALREADY_EXISTS: Exit.CONFLICT,
    grpc.StatusCode.ABORTED: Exit.CONFLICT,
}

_REMEDIES = {
    "APP_NOT_FOUND": "`appsupervisor list` shows the apps there are.",
    "APP_ALREADY_EXISTS": "`appsupervisor apply` or `update` changes an app that exists.",
    "APP_STOPPED": "`appsupervisor start` starts it.",
    "ENVIRONMENT_NOT_FOUND": "`appsupervisor environments` shows the environments there are.",
    "DATA_LOST": "On the command line that is --accept-data-loss.",
    "DATA_MISSING": "On the command line that is --accept-data-loss.",
    "ETAG_MISMATCH": "Read it again, and repeat the command.",
    "ENTRYPOINT_MODULE_NOT_FOUND": "A node looks in its --app-dir folders and its installed packages.",
    "ISOLATION_UNSUPPORTED": "Leave `isolation` unset, and the node chooses.",
}


def from_rpc(failure: grpc.RpcError, address: str) -> CliError:
    """Return a failed call as this program tells it; the sentence names each field that is wrong."""
    code: grpc.StatusCode = failure.code()
    status = _status_of(failure)
    if status is None and code is grpc.StatusCode.UNAVAILABLE:
        return CliError(
            f"No control plane answers at {address}.",
            Exit.UNREACHABLE,
            remedy="`appsupervisor up` starts one on this machine; --address or a context names another.",
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        # A node's port, its apps' port, or any other server of HTTP/2: what it says of itself misleads here.
        return CliError(
            f"What answers at {address} is no control plane, or one of a version without this method.",
            Exit.UNREACHABLE,
            reason=code.name,
            remedy="A control plane has port 7400 unless told otherwise; `appsupervisor up` prints which.",
        )
    if status is None:
        return CliError(failure.details() or code.name, _CODES.get(code, Exit.FAILED), reason=code.name)
    return from_status(status, _CODES.get(code, Exit.FAILED))


def from_status(status: Status, code: Exit = Exit.FAILED) -> CliError:
    """Return a status, of a call or of an operation that failed, as this program tells it."""
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)  # leaves it as it is where the type is another
        detail.Unpack(bad)
    sentence = status.message
    if bad.field_violations:
        fields = [f"{one.field} {one.description}".strip() for one in bad.field_violations]
        sentence = (
            fields[0]
            if len(fields) == 1
            else "\n".join(["these fields are wrong:", *(f"  {f}" for f in fields)])
        )
    return CliError(sentence, code, reason=info.reason, remedy=_REMEDIES.get(info.reason, ""))


def _status_of(failure: grpc.RpcError) -> Status | None:
    read = getattr(failure, "trailing_metadata", None)
    packed = dict(read() or ()).get(DETAILS_KEY) if read else None
    return None if packed is None else Status.FromString(packed)
