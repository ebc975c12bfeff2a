"""The PROCESS tier: one forked process per instance, started from the node's zygote.

It contains crashes, memory and CPU of an app; it is no sandbox: guests run as the node's user and could
read that user's files.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.context import AppContext
from runtime_node.tiers.process import wire
from runtime_node.tiers.process.limits import ProcessLimits
from runtime_node.tiers.process.running import GuestProcess, ProcessRunningApp
from runtime_node.tiers.process.watch import Watch
from runtime_node.tiers.process.zygote import Zygote, base_environment
from runtime_node.tiers.runner import Launch, RunningApp
from services.rpc.errors import SupervisorError

_logger = logging.getLogger(__name__)

OutputSink = Callable[[AppContext, str, str], None]
"""Called on the control loop with the instance's context, the stream and one line."""


class ProcessRunner:
    """Starts apps in processes of their own. Made on the control loop; one per node."""

    tier: InstanceSpec.IsolationTier.ValueType = InstanceSpec.PROCESS

    def __init__(self, zygote: Zygote, on_output: OutputSink | None = None) -> None:
        """Without `on_output` the lines go to each instance's logger: stdout as INFO, stderr as WARNING."""
        loop = asyncio.get_running_loop()
        self._zygote = zygote
        self._zygote.attach(loop)
        self._watch = Watch(loop)
        self._on_output = on_output or _to_logger

    async def start(self, launch: Launch) -> RunningApp:
        """See AppRunner. Raises APP_CRASHED or APP_OUT_OF_MEMORY too, where the process died of its start."""
        began = time.monotonic()
        limits = ProcessLimits.of(launch.spec)
        context = launch.context

        def on_output(stream: str, line: str) -> None:
            self._on_output(context, stream, line)

        parcel = _parcel(launch, limits)
        guest = GuestProcess(launch, self._zygote, self._watch, limits, on_output)
        try:
            await guest.fork(parcel)
            await guest.serves()
        except (OSError, wire.WireError) as error:
            await guest.end()
            guest.release()
            raise _not_forked(error, launch.spec.name) from error
        except BaseException:
            try:
                await asyncio.shield(guest.end())
            finally:
                guest.release()
            raise
        _logger.info(
            "guest ready",
            extra={
                "action": "guest.ready",
                "instance": launch.spec.name,
                "pid": guest.pid,
                "seconds": round(time.monotonic() - began, 4),
            },
        )
        return ProcessRunningApp(guest)

    async def close(self) -> None:
        """See AppRunner. Ends the zygote, and with it any guest that is left."""
        await self._zygote.close()


def _not_forked(error: Exception, resource: str) -> SupervisorError:
    """Return why an app got no process; but for a start that no message holds, another try may succeed."""
    if isinstance(error, wire.WireError):
        reason, sentence = "ISOLATION_UNSUPPORTED", f"Its start cannot be told to a process: {error}."
    elif isinstance(error, (ConnectionError, TimeoutError)):
        reason, sentence = "APP_CRASHED", "The zygote that its process was to be forked from has ended."
    else:
        reason, sentence = "NODE_FULL", f"The node has no process to give: {error.args[-1]}."
    return SupervisorError(reason, sentence, resource=resource)


def _parcel(launch: Launch, limits: ProcessLimits) -> dict[str, Any]:
    context = launch.context
    plain = {
        "app": context.app,
        "instance": context.instance,
        "generation": context.generation,
        "config": dict(context.config),
        "env": dict(context.env),
        "secrets": dict(context.secrets),
        "database_url": context.database_url,
        "data_dir": str(context.data_dir),
        "database_pool": context.database_pool,
    }
    return {
        "entrypoint": launch.spec.entrypoint,
        "context": plain,
        "environment": environment_of(context),
        "limits": limits.of_guest().plain(),
        "beat_seconds": min(0.1, limits.block_budget / 2),
        "block_budget": limits.block_budget,
        "stop_timeout": limits.stop_timeout,
        "asyncio_loop": launch.spec.event_loop == InstanceSpec.ASYNCIO,
    }


def environment_of(context: AppContext) -> dict[str, str]:
    """Return a guest's environment variables: a minimal base, what the host gives, then the app's own."""
    environment = base_environment()
    environment.update(
        APP=context.app,
        APP_INSTANCE=context.instance,
        APP_GENERATION=str(context.generation),
        APP_CONFIG=json.dumps(dict(context.config)),
        DATA_DIR=str(context.data_dir),
        HOME=str(context.data_dir),
        # Nothing listens there: requests come from the node. Apps that insist on reading a port find one.
        HOST="127.0.0.1",
        PORT="8000",
        PYTHONUNBUFFERED="1",
    )
    if context.database_url:
        environment["DATABASE_URL"] = context.database_url
    if context.database_pool:
        environment["DATABASE_POOL_SIZE"] = str(context.database_pool)
    environment.update(context.env)
    environment.update(context.secrets)
    return environment


def _to_logger(context: AppContext, stream: str, line: str) -> None:
    level = logging.INFO if stream == "stdout" else logging.WARNING
    if context.logger.isEnabledFor(level):
        record = logging.LogRecord(context.logger.name, level, "", 0, line, None, None)
        record.origin = stream
        context.logger.handle(record)
