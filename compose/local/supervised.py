"""One process of the stack: started, listened to, started again when it dies, stopped in time."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from compose.local.output import Output
from services.rpc import child

CHILD = str(child.__file__)
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
SETTLED_AFTER = 30.0
"""Seconds after which a process counts as running well: its next death is the first again."""
KILL_AFTER = 5.0
"""Seconds for the kernel to take a killed process away, or for a pipe held elsewhere to be let go."""
LINE_BYTES = 1 << 20


class Supervised:
    """A process by its command (a Python module and its flags). Used on one event loop, by the main thread.

    The kernel ties a child to the thread that started it: that thread has to be the one that lives longest.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        output: Output,
        *,
        variables: Mapping[str, str] | None = None,
        ended_by: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self._variables = variables or {}
        self._ended_by = ended_by
        # -P: nothing that a library imports is to be found in the folder that the launcher is called from.
        self._command = [sys.executable, "-P", "-m", *command]
        self._output = output
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self.ready = False
        """Set by who knows. A process that ends before it was ever ready is not started again."""
        self.failed = asyncio.Event()
        """Set when it ended before it was ready."""

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Begin to run it and to keep it running."""
        self._task = asyncio.create_task(self._keep_running(), name=f"run {self.name}")

    async def stop(self, timeout: float) -> None:
        """Ask it to end, kill it and its group after `timeout` seconds."""
        self._stopping = True
        if self._task is None:
            return
        if self._process is None:
            self._task.cancel()  # it waits for its next start
        else:
            self._signal(self._ended_by)
        done, _ = await asyncio.wait([self._task], timeout=timeout)
        if not done:
            self._output.log("up", f"{self.name} did not end within {timeout:.0f} s: killing it")
            self.kill()
            await asyncio.wait([self._task], timeout=KILL_AFTER)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def kill(self) -> None:
        """Kill it and everything in its process group at once."""
        self._stopping = True
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _keep_running(self) -> None:
        loop = asyncio.get_running_loop()
        delay = FIRST_DELAY
        while not self._stopping:
            began = loop.time()
            how = await self._run_once()
            if self._stopping:
                return
            if not self.ready:
                self._output.log("up", f"{self.name} {how} before it was ready")
                self.failed.set()
                return
            if loop.time() - began > SETTLED_AFTER:
                delay = FIRST_DELAY
            self._output.log("up", f"{self.name} {how}; starting it again in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)

    async def _run_once(self) -> str:
        """Run it until it ends; return how it ended."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-S",
            CHILD,
            str(os.getpid()),
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # A session of its own: Ctrl-C reaches the launcher alone, which then stops the rest in order.
            start_new_session=True,
            limit=LINE_BYTES,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **self._variables},
        )
        self._process = process
        if self._stopping:
            self._signal(self._ended_by)  # stop came while it was being started
        reading = asyncio.create_task(self._pass_on(process), name=f"log of {self.name}")
        try:
            code = await process.wait()
            # A process that outlives its parent may hold the pipe open: its lines are not waited for.
            await asyncio.wait([reading], timeout=0.5)
        finally:
            self._process = None
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    async def _pass_on(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                continue  # longer than the limit; the stream has thrown it away
            if not line:
                return
            self._output.log(self.name, line.decode("utf-8", "replace").rstrip("\r\n"))

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
