"""Bounds what the WebSockets of one app hold together of messages that the app has not taken yet."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

OWN_BYTES = 4096
"""What each WebSocket may hold beside the bound, so that those whose app reads never wait for others."""


class Reader(Protocol):
    """A WebSocket that reads for its app."""

    def read_on(self) -> None:
        """Go on reading and parsing."""
        ...


class InboundBudget:
    """Counts bytes that wait for an app, and says who may read. Belongs to the front loop.

    Beyond the bound one reader at a time borrows what it needs to complete the message that it has begun:
    else several, each with half a message, would wait for each other.
    """

    __slots__ = ("_borrower", "_bound", "_stopped", "_used")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._used = 0
        self._stopped: OrderedDict[Reader, None] = OrderedDict()
        self._borrower: Reader | None = None

    @property
    def used(self) -> int:
        """Bytes that wait now."""
        return self._used

    @property
    def full(self) -> bool:
        """Whether the bound is reached."""
        return self._used >= self._bound

    def may_read(self, reader: Reader, held: int, *, incomplete: bool) -> bool:
        """Tell whether a reader that holds so many bytes may read; if not it is told when it may.

        `incomplete`: all it holds is a part of one message.
        """
        if held <= OWN_BYTES or not self.full:
            return True
        if incomplete and self._borrower in (None, reader):
            self._borrower = reader
            return True
        self._stopped[reader] = None
        return False

    def borrows(self, reader: Reader) -> bool:
        """Tell whether the others wait for this reader to complete its message."""
        return self._borrower is reader

    def count(self, change: int) -> None:
        """Count bytes that wait from now on, or with a negative number those that were taken."""
        self._used += change
        if change < 0:
            self._wake()

    def repay(self, reader: Reader) -> None:
        """Take note that the app has taken the message that a reader borrowed for, or that it has ended."""
        if self._borrower is reader:
            self._borrower = None
            self._wake()

    def forget(self, reader: Reader) -> None:
        """Take out a reader that has ended; it counts what it held by itself."""
        self._stopped.pop(reader, None)
        self.repay(reader)

    def _wake(self) -> None:
        # Those that may not read after all stand in line again; each is asked once.
        for _ in range(len(self._stopped)):
            if self.full and self._borrower is not None:
                return
            if not self._stopped:
                return
            self._stopped.popitem(last=False)[0].read_on()
