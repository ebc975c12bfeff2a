"""Looks once more, after catching up, before a replica says that something does not exist.

So a client that writes at one replica and reads at another finds what it has made.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any

from services.control_plane.catalog.positions import caught_up
from services.control_plane.store.interface import CatalogStore
from services.rpc.errors import Code, SupervisorError


class FreshServicer:
    """A servicer as it is, but for its NOT_FOUND: that is the newest catalog's."""

    def __init__(self, servicer: Any, store: CatalogStore) -> None:
        self._store = store
        for name, method in inspect.getmembers(servicer, callable):
            if name[0].isupper():
                setattr(self, name, self._fresh(method))

    def _fresh(self, method: Any) -> Any:
        if inspect.isasyncgenfunction(method):
            return self._stream(method)
        return self._unary(method) if inspect.iscoroutinefunction(method) else method

    def _unary(self, method: Any) -> Any:
        async def call(request: Any, context: Any) -> Any:
            before = self._store.mirror.apps.revision
            try:
                return await method(request, context)
            except SupervisorError as failure:
                if not await self._may_be_found(failure, before):
                    raise
            return await method(request, context)

        return call

    def _stream(self, method: Any) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            before, told = self._store.mirror.apps.revision, False
            try:
                async for message in method(request, context):
                    told = True
                    yield message
                return
            except SupervisorError as failure:
                if told or not await self._may_be_found(failure, before):
                    raise
            async for message in method(request, context):
                yield message

        return call

    async def _may_be_found(self, failure: SupervisorError, before: int) -> bool:
        return failure.code is Code.NOT_FOUND and await caught_up(self._store) > before
