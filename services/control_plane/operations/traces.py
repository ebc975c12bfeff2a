"""The end of a traceback as an operation's error carries it, and where all of it can be read. Pure."""

from __future__ import annotations

from google.rpc.error_details_pb2 import DebugInfo
from google.rpc.status_pb2 import Status

FRAMES = 5
"""Frames that an error carries: where it was raised, and how it came there."""

MAX_FRAME_CHARACTERS = 400


def add_trace(status: Status, traceback: str, app: str) -> None:
    """Add the last frames of an app's traceback to an error, as a DebugInfo."""
    frames = last_frames(traceback)
    if not frames:
        return
    info = DebugInfo(
        stack_entries=frames,
        detail=f"The end of the traceback; all of it is in TailAppLogs and ListAppEvents of {app}.",
    )
    status.details.add().Pack(info)


def last_frames(traceback: str) -> list[str]:
    """Return the last frames of a traceback, outermost first, and after them the exception's own lines."""
    frames: list[list[str]] = []
    for line in traceback.splitlines():
        if line.startswith("  File ") or (frames and not line.startswith(" ") and frames[-1][0][0] == " "):
            frames.append([line])
        elif frames:
            frames[-1].append(line)
    entries = ["\n".join(lines).strip()[:MAX_FRAME_CHARACTERS] for lines in frames]
    return entries[-FRAMES - 1 :]
