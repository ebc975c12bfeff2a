"""The zygote process: loads what guests need once, then forks one guest per request of its node.

It has one thread and no event loop, reads no app's data, and imports no gRPC. It ends with its node,
and takes every guest with it.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime_node.tiers.process import cgroups, procfs, wire

NODE_DIED = signal.SIGRTMIN + 1
HUNT_SECONDS = 2.0
"""How long the end of a guest waits for that of its descendants: a fork bomb may need several rounds."""
HUNT_PERIOD = 0.002
LOOK_SECONDS = 1.0
"""Between two looks for processes that came to us because their parents ended."""
LAST_SECONDS = 5.0
"""How long the zygote stays behind its node until nothing of its guests is left."""


@dataclass
class _Ending:
    """A guest that has ended, while something that it started may still run."""

    tag: int
    report: dict[str, Any]
    deadline: float
    strays: set[int] = field(default_factory=set)


class ZygoteServer:
    """The zygote's own state: its link to the node and the guests it has forked.

    What an app starts ends with it, however it left: all of it becomes the zygote's child in the end, for
    that is the nearest reaper of orphans. What has lost the mark of its guest is killed when it arrives.
    """

    def __init__(self, link: socket.socket, node: int, app_dirs: Sequence[str], groups: Path | None) -> None:
        self._link = link
        self._node = node
        self._app_dirs = tuple(app_dirs)
        self._groups = groups
        self._guests: dict[int, tuple[int, int, int]] = {}  # pid -> serial, tag, kills of the OOM killer
        self._endings: list[_Ending] = []
        self._orphaned = False
        self._wakeup, self._wakeup_write = socket.socketpair()

    def run(self) -> None:
        """Serve the node until it closes the link or is gone; then end every guest."""
        self._wakeup.setblocking(False)
        self._wakeup_write.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Only noted: an exception here could break off the clean-up that the link's end has begun.
        signal.signal(NODE_DIED, self._note_death)
        self._link.setblocking(False)
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        looked = 0.0
        try:
            while not self._orphaned:
                for descriptor, _ in poll.poll((HUNT_PERIOD if self._endings else LOOK_SECONDS) * 1000):
                    if descriptor == self._link.fileno():
                        self._read_commands()
                    else:
                        self._drain_wakeup()
                self._reap()
                if self._endings or time.monotonic() - looked > LOOK_SECONDS:
                    looked = time.monotonic()
                    self._hunt()
        except wire.ClosedError:
            pass
        finally:
            self._end_all()

    def _note_death(self, *_: object) -> None:
        # Whoever else sends this signal is not believed.
        self._orphaned = os.getppid() != self._node

    def _read_commands(self) -> None:
        while True:
            try:
                message, descriptors = wire.receive(self._link)
            except BlockingIOError:
                return
            try:
                match message["op"]:
                    case "spawn":
                        self._spawn(message, descriptors)
                    case "kill":
                        self._kill(message["serial"])
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _tell(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        # The node reads from its own loop and may be busy; what is told here must not be lost.
        while True:
            try:
                wire.send(self._link, message, descriptors)
            except BlockingIOError:
                select.select([], [self._link], [], 1.0)
            else:
                return

    def _spawn(self, message: dict[str, Any], descriptors: list[int]) -> None:
        serial, tag = message["serial"], message["tag"]
        try:
            pid = os.fork()
        except OSError as error:
            self._tell({"op": "refused", "serial": serial, "message": os.strerror(error.errno or 0)})
            return
        if pid == 0:
            self._become_guest(message, descriptors)
        self._guests[pid] = (serial, tag, procfs.out_of_memory_kills())
        try:
            descriptor = os.pidfd_open(pid)
        except OSError as error:  # as many files are open as may be
            _kill_group(pid)
            self._tell({"op": "refused", "serial": serial, "message": os.strerror(error.errno or 0)})
            return
        try:
            self._tell({"op": "spawned", "serial": serial, "pid": pid}, [descriptor])
        finally:
            os.close(descriptor)

    def _become_guest(self, message: dict[str, Any], descriptors: list[int]) -> None:
        # Never returns: whatever happens, the child must not go on as a second zygote.
        try:
            signal.set_wakeup_fd(-1)
            from runtime_node.tiers.process import guest  # noqa: PLC0415  (preloaded; a cycle otherwise)

            guest.main(guest.Descriptors(*descriptors), message["tag"], message["name"], self._app_dirs)
        except BaseException:  # noqa: BLE001  (the last line of defence before os._exit)
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(guest_failed := 70)  # noqa: F841  (EX_SOFTWARE)

    def _kill(self, serial: int) -> None:
        for pid, (known, _, _) in self._guests.items():
            if known == serial:
                _kill_group(pid)

    def _drain_wakeup(self) -> None:
        try:
            while self._wakeup.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            known = self._guests.pop(pid, None)
            if known is None:
                continue  # a descendant of a guest that outlived its parents
            serial, tag, kills = known
            report = {
                "op": "exited",
                "serial": serial,
                "status": status,
                "oom_kills": procfs.out_of_memory_kills() - kills,
            }
            self._endings.append(_Ending(tag, report, time.monotonic() + HUNT_SECONDS))

    def _hunt(self) -> None:
        """Kill what has outlived its guest, and tell the node of each guest of which nothing is left."""
        tags = {tag for _, tag, _ in self._guests.values()}
        nobodys = {pid for pid in procfs.children(os.getpid()) - set(self._guests) if _is_nobodys(pid, tags)}
        for pid in nobodys:
            _kill_group(pid)
        killed = procfs.kill_marked({ending.tag for ending in self._endings}) if self._endings else {}
        for ending in list(self._endings):
            found = nobodys | {pid for pid, tag in killed.items() if tag == ending.tag}
            ending.strays |= found
            if found and time.monotonic() < ending.deadline:
                continue
            self._endings.remove(ending)
            self._tell({**ending.report, "strays": len(ending.strays)})

    def _end_all(self) -> None:
        if self._groups is not None:
            cgroups.end(self._groups)
        for pid in self._guests:
            _kill_group(pid)
        deadline = time.monotonic() + LAST_SECONDS
        tags = {tag for _, tag, _ in self._guests.values()} | {ending.tag for ending in self._endings}
        while time.monotonic() < deadline:
            # Whatever a guest has started is our child once its parents are gone, and all go.
            for pid in procfs.children(os.getpid()):
                _kill_group(pid)
            procfs.kill_marked(tags)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(HUNT_PERIOD)


def _is_nobodys(pid: int, tags: set[int]) -> bool:
    # A daemon that an app has started is left to it for as long as both live.
    return procfs.is_alive(pid) and procfs.mark_of(pid) not in tags


def _on_node_died(*_: object) -> None:
    sys.exit(0)  # before there is anything to clean up


def _kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except OSError:
            continue  # not yet the leader of its group, or already gone


def preload(modules: Sequence[str]) -> str | None:
    """Import what guests need; return the first module that starts a thread, which makes forks unsafe."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception:  # noqa: BLE001, S112  (an optional module that is broken is the app's to find out)
            continue
        if procfs.thread_count() > 1:
            return module
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the zygote on the socket it was given. The node's `Zygote.launch` is who calls this."""
    parser = argparse.ArgumentParser(prog="zygote")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--node-pid", type=int, required=True)
    parser.add_argument("--preload", default="")
    parser.add_argument("--app-dir", action="append", default=[])
    parser.add_argument("--guest-groups", type=Path)
    options = parser.parse_args(arguments)
    # Not SIGKILL: the zygote outlives its node for the moment it takes to end the guests' descendants,
    # which no death signal reaches.
    signal.signal(NODE_DIED, _on_node_died)
    procfs.prctl(procfs.PR_SET_PDEATHSIG, NODE_DIED)
    procfs.prctl(procfs.PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != options.node_pid:
        return  # the node died before the line above could take effect
    # A terminal's Ctrl-C and a supervisor's SIGTERM to the group are the node's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    procfs.set_name("app-zygote")
    link = socket.socket(fileno=options.fd)
    link.set_inheritable(False)
    unfit = preload([name for name in options.preload.split(",") if name])
    gc.collect()
    gc.freeze()
    resident = procfs.resident_bytes(os.getpid())
    try:
        if unfit is not None:
            wire.send(link, {"op": "unfit", "module": unfit})
            return
        wire.send(link, {"op": "ready", "pid": os.getpid(), "resident_bytes": resident})
    except wire.ClosedError:
        return  # the node went while modules were loaded
    try:
        ZygoteServer(link, options.node_pid, options.app_dir, options.guest_groups).run()
    finally:
        # An orderly end of the interpreter would take the preloaded heap apart piece by piece.
        os._exit(0)
