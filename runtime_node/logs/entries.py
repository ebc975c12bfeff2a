"""One entry of an app's log, and its line on disk: a JSON array, so that any text stays one line. Pure."""

from __future__ import annotations

import json
from typing import NamedTuple

MAX_TEXT_BYTES = 16 * 1024
_CUT = " […]"

UNWRITTEN = "lost: they could not be written"
"""What the entry says, after a number, that tells of lines which the disk did not take."""


class Entry(NamedTuple):
    """An entry as it is kept. `time` is in microseconds since the Unix epoch, `level` that of `logging`."""

    cursor: int
    time: int
    level: int
    instance: str
    """Id of the instance, without its app."""
    source: str
    text: str
    dropped: int = 0

    @property
    def tells_unwritten(self) -> bool:
        """Whether it tells of lines which the disk did not take."""
        return bool(self.dropped) and self.text.endswith(UNWRITTEN)


def encode(entry: Entry) -> bytes:
    """Return the entry's line, with its end."""
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Entry | None:
    """Return the entry of a line; None for what is no entry, such as the torn end of a file."""
    try:
        cursor, time, level, instance, source, text, dropped = json.loads(line)
        return Entry(int(cursor), int(time), int(level), str(instance), str(source), str(text), int(dropped))
    except (ValueError, TypeError):
        return None


def storable(text: str) -> str:
    """Return the text as valid UTF-8 of at most 16 KiB, cut at its end."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= MAX_TEXT_BYTES:
        return raw.decode()
    return raw[: MAX_TEXT_BYTES - len(_CUT.encode())].decode(errors="ignore") + _CUT
