"""Hosts of a test as network namespaces behind one switch, and what can happen to the wires between them.

The switch is in a namespace of its own: the machine's own interfaces, routes and rules are never touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import CHILD, ROOT
from tests.seeds import SEED

NAMES = "chaos"
PROGRAMS = ("ip", "tc", "iptables", "ip6tables", "nsenter", "mount")
_NAMESPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000


def require() -> None:
    """Skip where namespaces cannot be made; fail where everything is to be checked and they could."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("network namespaces are made by root on Linux alone")
    missing = [
        name
        for name in ("ip", "tc", "iptables", "ip6tables", "nsenter", "mount")
        if shutil.which(name) is None
    ]
    if missing:
        message = f"needs {', '.join(missing)} on PATH (bash .ci/run installs them where apt can)"
        if os.environ.get("CI") == "true":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"this root may make no network namespace: {tried.stderr.strip()}")


def run(*command: str) -> str:
    """Run a program of the system and return what it printed; raises with what it complained about."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def reap() -> None:
    """Remove the namespaces, processes, disks and folders of test runs that ended without doing so."""
    for path in _NAMESPACES.glob(f"{NAMES}[0-9]*-*"):
        if not _alive(path.name.removeprefix(NAMES).partition("-")[0]):
            _remove(path.name)
    for line in Path("/proc/mounts").read_text().splitlines():
        source, place, *_ = line.split()
        if source.startswith(f"{NAMES}-") and not _alive(source.removeprefix(f"{NAMES}-")):
            run("umount", "--lazy", place)
    for folder in Path(tempfile.gettempdir()).glob(f"{NAMES}[0-9]*-*"):
        if not _alive(folder.name.removeprefix(NAMES).partition("-")[0]):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: str) -> bool:
    return not pid.isdigit() or Path("/proc", pid).exists()


def _signal(namespace: str, number: signal.Signals) -> None:
    for pid in run("ip", "netns", "pids", namespace).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), number)


def _remove(namespace: str) -> None:
    # What stood still when its test ended has never heard that it should end.
    _signal(namespace, signal.SIGKILL)
    run("ip", "netns", "delete", namespace)


class Network:
    """Named hosts, each at an address of its own, all reaching each other until a fault says otherwise."""

    _count = 0

    def __init__(self, *hosts: str, ipv6: bool = False) -> None:
        reap()
        Network._count += 1
        self._prefix = f"{NAMES}{os.getpid()}-{Network._count}-"
        self.subnet = "fd77::/64" if ipv6 else "10.77.0.0/24"
        self._tables = "ip6tables" if ipv6 else "iptables"
        of_host = "fd77::{:x}" if ipv6 else "10.77.0.{}"
        self.addresses = {host: of_host.format(number) for number, host in enumerate(hosts, 1)}
        switch = self._add("switch")
        self._ip("switch", "link", "add", "switch", "type", "bridge")
        self._ip("switch", "link", "set", "switch", "up")
        for number, host in enumerate(hosts, 1):
            namespace = self._add(host)
            port = f"port{number}"
            run(*("ip", "link", "add", port, "netns", switch, "type", "veth"),
                *("peer", "name", "eth0", "netns", namespace))  # fmt: skip
            self._ip("switch", "link", "set", port, "master", "switch", "up")
            bits = self.subnet.partition("/")[2]
            at_once = ["nodad"] if ipv6 else []
            self._ip(host, "address", "add", f"{self.addresses[host]}/{bits}", "dev", "eth0", *at_once)
            for interface in ("eth0", "lo"):
                self._ip(host, "link", "set", interface, "up")

    def _add(self, host: str) -> str:
        namespace = f"{self._prefix}{host}"
        run("ip", "netns", "add", namespace)
        return namespace

    def _ip(self, host: str, *command: str) -> None:
        run("ip", "-n", f"{self._prefix}{host}", *command)

    def within(self, host: str) -> tuple[str, ...]:
        """Return the command that runs another one on a host."""
        return ("nsenter", f"--net={_NAMESPACES / (self._prefix + host)}")

    def enter(self, host: str) -> None:
        """Take the calling thread to a host, for good: the sockets that it makes are that host's."""
        with (_NAMESPACES / (self._prefix + host)).open() as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns to {host}")

    @contextlib.contextmanager
    def lost(self, source: str, target: str) -> Iterator[None]:
        """Lose every packet from one host to another, one way."""
        rule = ("INPUT", "--source", self.addresses[source], "--jump", "DROP")
        tables = (*self.within(target), self._tables, "--wait")
        run(*tables, "--append", *rule)
        try:
            yield
        finally:
            run(*tables, "--delete", *rule)

    @contextlib.contextmanager
    def cut(self, host: str, *others: str) -> Iterator[None]:
        """Lose every packet between a host and some others, both ways."""
        with contextlib.ExitStack() as cuts:
            for other in others:
                cuts.enter_context(self.lost(host, other))
                cuts.enter_context(self.lost(other, host))
            yield

    @contextlib.contextmanager
    def frozen(self, host: str) -> Iterator[None]:
        """Let all processes of a host stand still."""
        _signal(self._prefix + host, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(self._prefix + host, signal.SIGCONT)

    @contextlib.contextmanager
    def slow(self, host: str, megabits: int) -> Iterator[None]:
        """Let a host send no faster than that a second."""
        self._tc(host, "add", "tbf", "rate", f"{megabits}mbit", "burst", "64kb", "latency", "200ms")
        try:
            yield
        finally:
            self._tc(host, "delete")

    @contextlib.contextmanager
    def delayed(
        self, host: str, *, late: float = 0.0, jitter: float = 0.0, lost: float = 0.0, twice: float = 0.0
    ) -> Iterator[None]:
        """Let what a host sends and is sent arrive late, in another order, twice or never: see `wire`."""
        port = f"port{list(self.addresses).index(host) + 1}"
        switch = f"{self._prefix}switch"
        self._ip("switch", "link", "add", f"{port}-in", "type", "veth", "peer", "name", f"{port}-out")
        wire = None
        try:
            self._ip("switch", "link", "set", f"{port}-out", "master", "switch", "up")
            self._ip("switch", "link", "set", f"{port}-in", "up")
            wire = subprocess.Popen(
                [*self.within("switch"), sys.executable, "-S", str(CHILD), str(os.getpid()), sys.executable,
                 "-m", "tests.chaos.wire", port, f"{port}-in", f"--late={late}", f"--jitter={jitter}",
                 f"--lost={lost}", f"--twice={twice}", f"--seed={SEED}"],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            )  # fmt: skip
            assert wire.stdout is not None
            assert wire.stdout.readline() == b"ready\n", f"no wire for {host}"
            self._ip("switch", "link", "set", port, "nomaster")
            yield
        finally:
            self._ip("switch", "link", "set", port, "master", "switch")
            if wire is not None:
                wire.kill()
                wire.communicate()
            run("ip", "-n", switch, "link", "delete", f"{port}-in")

    def _tc(self, host: str, verb: str, *discipline: str) -> None:
        run(*self.within(host), "tc", "qdisc", verb, "dev", "eth0", "root", *discipline)

    def close(self) -> None:
        """Remove all of it, with what still runs there."""
        for path in _NAMESPACES.glob(f"{self._prefix}*"):
            _remove(path.name)


@contextlib.contextmanager
def disk(place: Path, mebibytes: int) -> Iterator[Path]:
    """Mount a small disk at a directory."""
    place.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", f"{NAMES}-{os.getpid()}", str(place))
    try:
        yield place
    finally:
        run("umount", "--lazy", str(place))


@contextlib.contextmanager
def full(place: Path, *, but: int = 0) -> Iterator[None]:
    """Fill the disk of a directory, but for some bytes; they are free again afterwards."""
    filler = place / ".filler"
    try:
        with filler.open("wb") as file:
            free = os.statvfs(place)
            os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - but))
        yield
    finally:
        filler.unlink(missing_ok=True)
