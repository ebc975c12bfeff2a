"""Reads over gRPC what another node offers. The ticket is all that it shows of itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import grpc

from appsupervisor.errors.v1.error_reason_pb2 import ErrorReason
from appsupervisor.runtime.v1 import data_transfers_pb2 as pb
from appsupervisor.runtime.v1.data_transfers_pb2_grpc import DataTransfersStub
from services.rpc.errors import SupervisorError
from services.rpc.status import info_of

OPTIONS = (
    ("grpc.max_receive_message_length", 2 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
)


async def read_offered(
    address: str, request: pb.ReadDataRequest, silence: float
) -> AsyncGenerator[pb.ReadDataResponse, None]:
    """Yield the messages of ReadData of the node at `host:port`, none before the one before was taken.

    Raises SupervisorError when it refuses, breaks off too soon, or brings nothing for `silence` seconds.
    """
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        call = DataTransfersStub(channel).ReadData(request)
        try:
            while True:
                async with asyncio.timeout(silence):
                    message = await call.read()
                if not isinstance(message, pb.ReadDataResponse):
                    raise _broken(address, "it ended too soon")
                yield message
                if message.HasField("end"):
                    return
        except TimeoutError:
            raise _broken(address, f"it brought nothing for {silence:g} s") from None
        except grpc.aio.AioRpcError as failure:
            reason, metadata = info_of(failure)
            if reason in ErrorReason.keys():  # noqa: SIM118 - an enum, not a dict
                raise SupervisorError(reason, failure.details() or reason, metadata=metadata) from None
            raise _broken(address, failure.details() or failure.code().name) from None
        finally:
            call.cancel()


def _broken(address: str, why: str) -> SupervisorError:
    return SupervisorError(
        "NODE_UNREACHABLE",
        f"The node that has the data, at {address}, cannot be read: {why}.",
        metadata={"address": address, "why": why},
    )
