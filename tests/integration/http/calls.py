"""Calls of gRPC to a node's HTTP port, and how they are refused."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import grpc.aio
import pytest

Dial = Callable[..., grpc.aio.Channel]
"""`dial(site, host="a.localhost")` returns a channel to a site's node, to the app of that host."""


async def refusal(call: grpc.aio.Call) -> grpc.aio.AioRpcError:
    """Return the error with which a call ends."""
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await call
    return told.value
