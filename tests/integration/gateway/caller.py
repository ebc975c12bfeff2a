"""A gRPC client in a process of its own, for its library reads the bootstrap once: does what lines say.

`{"do": "call", "target": …}` answers with who answered, or with the status; `begin` calls on and on until
`end`, and both `look` and that answer with the counts; `burst` makes calls at once, `rest` tells how they
have ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import grpc

TIMEOUT = 60.0
MESSAGES = 5
"""Of one call in both directions, each sent when the one before has been answered."""
NOT_BEGUN = {"APP_MOVED", "NODE_DRAINING"}
"""Reasons of a node for what it has given to no app: a call that was told one may be sent again."""
TRIES = 600
"""Of one caller in a row, 30 s: far more than it takes to hear where an app is now."""


async def _outcome(call: Awaitable[str]) -> dict[str, Any]:
    try:
        return {"from": await call}
    except grpc.aio.AioRpcError as failure:
        return {"code": failure.code().name, "said": failure.details()}


class Caller:
    """Calls targets, each over one channel."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._going: list[asyncio.Task[None]] = []
        self._burst: list[asyncio.Task[str]] = []
        self._ended = asyncio.Event()
        self._answers: Counter[str] = Counter()
        self._failed: list[str] = []
        self._repeated: Counter[str] = Counter()

    async def do(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry a command out."""
        channel = self._channel(command["target"])
        if command["do"] == "call":
            metadata = tuple(command.get("metadata", {}).items())
            return await _outcome(self._say(channel, metadata, bool(command.get("wait"))))
        if command["do"] == "burst":
            self._burst = [asyncio.create_task(self._say(channel)) for _ in range(command["calls"])]
            return {}
        if command["do"] == "rest":
            return {"ended": [await _outcome(call) for call in self._burst]}
        if command["do"] == "begin":
            self._ended.clear()
            self._going = [
                asyncio.create_task(self._go_on(call, channel, command["target"]))
                for call in (self._say, self._talk)
            ]
            return {}
        if command["do"] == "end":
            self._ended.set()
            await asyncio.gather(*self._going)
        return {
            "answers": dict(self._answers), "failed": self._failed, "repeated": dict(self._repeated),
        }  # fmt: skip

    def _channel(self, target: str) -> grpc.aio.Channel:
        if target not in self._channels:
            # As short as they go: a server that comes back is found at once.
            options = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200))
            self._channels[target] = grpc.aio.insecure_channel(target, options)
        return self._channels[target]

    async def _go_on(self, call: Any, channel: grpc.aio.Channel, target: str) -> None:
        in_a_row = 0
        while not self._ended.is_set():
            try:
                self._answers[await call(channel)] += 1
                in_a_row = 0
            except grpc.aio.AioRpcError as failure:
                reason = str(dict(failure.trailing_metadata()).get("x-appsupervisor-reason", ""))
                in_a_row += 1
                if reason in NOT_BEGUN and in_a_row <= TRIES:
                    self._repeated[reason] += 1
                else:
                    self._failed.append(f"{call.__name__} {failure.code().name} {failure.details()}")
                await asyncio.sleep(0.05)

    async def _say(self, channel: grpc.aio.Channel, metadata: Any = (), wait: bool = False) -> str:
        say: Any = channel.unary_unary("/echo.Echo/Say")
        answer = await say(b"who", timeout=TIMEOUT, metadata=metadata, wait_for_ready=wait)
        return str(answer.decode())

    async def _talk(self, channel: grpc.aio.Channel) -> str:
        talk: Any = channel.stream_stream("/echo.Echo/Talk")
        call = talk(timeout=TIMEOUT)
        who = ""
        for number in range(MESSAGES):
            with contextlib.suppress(asyncio.InvalidStateError):  # it has ended: reading tells how
                await call.write(str(number).encode())
            answer = await call.read()
            who, _, said = answer.decode().rpartition(" ") if answer is not grpc.aio.EOF else ("", "", "end")
            if said != str(number):
                self._failed.append(f"{said} for {number}")
                break
        await call.done_writing()
        if await call.read() is not grpc.aio.EOF:
            self._failed.append("more than was asked for")
        return who


async def main() -> None:
    caller = Caller()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await caller.do(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
