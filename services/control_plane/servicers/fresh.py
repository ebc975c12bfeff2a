"""Has a replica answer from the newest catalog: a client reads its own writes at whichever one it asks.

A read begins with a look at the database, which all reads that came before it share. While that cannot be
asked, what this replica knows is answered, but for NOT_FOUND.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

from services.control_plane.catalog.positions import caught_up
from services.control_plane.store.interface import CatalogStore
from services.rpc.background import background
from services.rpc.errors import Code, SupervisorError

READS = ("Explain", "Get", "List", "Tail", "Watch")
"""How the names of methods begin that tell what is in the catalog."""

LOOK_SECONDS = 0.5
"""How long a read waits for a look; once one was in vain, none waits until the database answers again."""


class FreshReads:
    """Lets reads wait until the mirror has all that was acknowledged before they came. Lives on one loop.

    One look is under way at a time, however many reads wait: the etcd way of linearizable reads.
    """

    def __init__(self, store: CatalogStore, seconds: float = LOOK_SECONDS) -> None:
        self._store = store
        self._seconds = seconds
        self._next: asyncio.Future[None] | None = None
        """Those that wait for a look which has not begun."""
        self._looking: asyncio.Task[None] | None = None
        self._in_vain = False

    async def caught_up(self) -> None:
        """Return once a look that began after this call has ended, or is known to come to nothing."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        look = self._next
        if self._looking is None:
            self._looking = background(self._look(), "fresh reads")
        if not self._in_vain:
            await asyncio.shield(look)  # others wait for it, too

    async def _look(self) -> None:
        try:
            while (look := self._next) is not None:
                self._next = None
                try:
                    await asyncio.wait_for(asyncio.wrap_future(self._store.catch_up()), self._seconds)
                    self._in_vain = False
                except (SupervisorError, TimeoutError):
                    self._in_vain = True
                finally:
                    look.set_result(None)
        finally:
            self._looking = None


class FreshServicer:
    """A servicer as it is, but that its reads, and its NOT_FOUND, are of the newest catalog.

    Whether the catalog has changed since is not asked: a call may come while a change is being taken in.
    """

    def __init__(self, servicer: Any, store: CatalogStore, reads: FreshReads) -> None:
        self._store = store
        self._reads = reads
        for name, method in inspect.getmembers(servicer, callable):
            if name[0].isupper():
                setattr(self, name, self._fresh(method, look_first=name.startswith(READS)))

    def _fresh(self, method: Any, *, look_first: bool) -> Any:
        if inspect.isasyncgenfunction(method):
            return self._stream(method, look_first)
        return self._unary(method, look_first) if inspect.iscoroutinefunction(method) else method

    def _unary(self, method: Any, look_first: bool) -> Any:
        async def call(request: Any, context: Any) -> Any:
            if look_first:
                await self._reads.caught_up()
            try:
                return await method(request, context)
            except SupervisorError as failure:
                if failure.code is not Code.NOT_FOUND:
                    raise
                await caught_up(self._store)
            return await method(request, context)

        return call

    def _stream(self, method: Any, look_first: bool) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            if look_first:
                await self._reads.caught_up()
            told = False
            try:
                async for message in method(request, context):
                    told = True
                    yield message
                return
            except SupervisorError as failure:
                if told or failure.code is not Code.NOT_FOUND:
                    raise
                await caught_up(self._store)
            async for message in method(request, context):
                yield message

        return call
