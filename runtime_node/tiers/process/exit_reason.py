"""Says in the one error family how a guest ended, and why. Pure."""

from __future__ import annotations

import os
import signal

from runtime_node.tiers.process.zygote import Ended
from services.rpc.errors import SupervisorError


def error_of(ended: Ended, *, resource: str, tail: str, memory_limit: int) -> SupervisorError | None:
    """Return why a guest ended by itself; None for an exit with status 0.

    `tail` is what it last wrote to stderr, at most 4 KiB, secrets blanked out. A kill that nobody here
    sent while the kernel was killing for memory is taken for one of those.
    """
    metadata = {"detail": tail} if tail else {}
    if ended.zygote_lost:
        return SupervisorError(
            "APP_CRASHED",
            "The app's process ended with the zygote that it was forked from.",
            resource=resource,
            metadata=metadata,
        )
    if os.WIFSIGNALED(ended.status):
        name = _signal_name(os.WTERMSIG(ended.status))
        metadata["signal"] = name
        if name == "SIGKILL" and ended.oom_kills > 0:
            return SupervisorError(
                "APP_OUT_OF_MEMORY",
                "The kernel killed the app's process because memory ran out.",
                resource=resource,
                metadata=metadata,
            )
        return SupervisorError(
            "APP_CRASHED", f"The app's process was ended by {name}.", resource=resource, metadata=metadata
        )
    status = os.waitstatus_to_exitcode(ended.status)
    if status == 0:
        return None
    metadata["exit_status"] = str(status)
    if memory_limit and tail.rstrip().rpartition("\n")[2].startswith("MemoryError"):
        return out_of_memory(memory_limit, resource=resource, tail=tail)
    return SupervisorError(
        "APP_CRASHED", f"The app's process exited with status {status}.", resource=resource, metadata=metadata
    )


def out_of_memory(limit: int, *, resource: str, tail: str, used: int | None = None) -> SupervisorError:
    """Return the error for a guest that needed more memory than `limit` bytes."""
    amount = f"{used >> 20} MiB where" if used is not None else "more memory than its limit:"
    return SupervisorError(
        "APP_OUT_OF_MEMORY",
        f"The app used {amount} {limit >> 20} MiB are allowed.",
        resource=resource,
        metadata={"detail": tail} if tail else {},
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
