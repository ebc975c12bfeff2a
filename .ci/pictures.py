"""Makes the pictures of docs/pictures: the command line on a terminal, recorded while a real stack runs.

`python .ci/pictures.py [FOLDER]` starts the stack, runs each scene's command, and writes an SVG each.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import random
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs/pictures"
COLUMNS, LINES = 118, 60
START_SECONDS = 120.0
COMMAND_SECONDS = 120.0

TILL = """
from fastapi import FastAPI

KNOWN = ("EUR", "USD")


def create_app(context):
    currency = context.config.get("currency", "EUR")
    if currency not in KNOWN:
        raise ValueError(f"there is no currency {currency!r}, but {' and '.join(KNOWN)}")
    app = FastAPI()

    @app.get("/")
    def total():
        return {"total": 12, "currency": currency}

    return app
"""


@dataclass(frozen=True)
class Scene:
    """One picture: its command, what it must show, and how it must end."""

    command: str
    expected: str
    status: int = 0
    moment: str = ""
    """What a frame must hold that is kept in place of the end: pattern of a bar half-way."""


SCENES = {
    "list": Scene("appsupervisor list", "RUNNING"),
    "update": Scene("appsupervisor update till --set config.currency=EURO", "there is no currency", status=1),
    "describe": Scene("appsupervisor describe till", "The version before serves"),
    "top": Scene("appsupervisor top --once", "REQ/S"),
    "apply": Scene("appsupervisor apply -f demos.yaml", "/200", moment=r"done .*?\b([6-9]\d|1[0-4]\d)/200"),
}
"""In the order in which they are taken."""


def main() -> None:
    """Take every picture; ends with a sentence if a command does not show what it should."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, stack(Path(scratch)) as (env, http_port):
        prepare(Path(scratch), env, http_port)
        for name, scene in SCENES.items():
            text = shown(scene, Path(scratch), env)
            (folder / f"{name}.svg").write_text(svg(name, scene.command, text))


@contextlib.contextmanager
def stack(scratch: Path) -> Iterator[tuple[dict[str, str], int]]:
    """Run `make up`'s stack in a folder; give the environment of its clients and its HTTP port."""
    (scratch / "my").mkdir()
    (scratch / "my/till.py").write_text(TILL)
    ports = ports_near(7400, 7401, 8080)
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
        "PYTHONUNBUFFERED": "1",
        "APPSUPERVISOR_DATA_DIR": str(scratch / "data"),
        "APPSUPERVISOR_METRICS_LISTEN": "off",
        **dict(
            zip(
                ("APPSUPERVISOR_CONTROL_PLANE_PORT", "APPSUPERVISOR_NODE_PORT", "APPSUPERVISOR_HTTP_PORT"),
                map(str, ports),
                strict=True,
            )
        ),
    }
    log = scratch / "up.log"
    with log.open("wb") as output:
        up = subprocess.Popen(
            [sys.executable, "-m", "compose.local", "--app-dir", str(scratch / "my")],
            cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_SECONDS
        while "Ctrl-C stops" not in log.read_text():
            if up.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"pictures: the stack did not start:\n{log.read_text()}")
            time.sleep(0.1)
        client = {name: value for name, value in env.items() if not name.startswith("APPSUPERVISOR_")}
        client |= {
            "APPSUPERVISOR_ADDRESS": f"127.0.0.1:{ports[0]}",
            "TERM": "xterm-256color",
            "LOGNAME": "ada",
        }
        client.pop("NO_COLOR", None)
        yield client, ports[2]
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(60)


CLAIMS: list[socket.socket] = []
"""Names of the ports of this run."""


def ports_near(*wanted: int) -> list[int]:
    """Return a port for each, the one that the pages name if it is free; a width of four in any case."""
    with contextlib.ExitStack() as held:  # until all are found: none is given twice
        return [port_near(port, held) for port in wanted]


def port_near(wanted: int, held: contextlib.ExitStack) -> int:
    """Return a port, bound as long as `held` is, that no other run gets until this one ends."""
    for port in (wanted, *random.sample(range(9000, 9999), 900)):
        claim, probe = socket.socket(socket.AF_UNIX), held.enter_context(socket.socket())
        with contextlib.suppress(OSError):
            claim.bind(
                f"\0appsupervisor-pictures-{port}"
            )  # a name in the kernel's table, gone with its process
            probe.bind(("127.0.0.1", port))
            CLAIMS.append(claim)
            return port
    sys.exit("pictures: no port is free")


def prepare(scratch: Path, env: dict[str, str], http_port: int) -> None:
    """Make what the pictures show: apps in several states, traffic, documents."""
    for command in (
        "create till till:create_app --config currency=EUR",
        "create wiki notes:create_app --set activation=ON_REQUEST",
        "create old notes:create_app",
        "stop old",
    ):
        subprocess.run(
            [sys.executable, "-m", "services.cli", *shlex.split(command)],
            cwd=scratch, env=env, check=True, stdout=subprocess.DEVNULL, timeout=COMMAND_SECONDS,
        )  # fmt: skip
    for app, times in (("shop", 40), ("blog", 12), ("till", 60)):
        for _ in range(times):
            request = urllib.request.Request(
                f"http://127.0.0.1:{http_port}/", headers={"Host": f"{app}.localhost"}
            )
            urllib.request.urlopen(request, timeout=30).close()
    documents = (
        f"name: demo-{number:03}\nentrypoint: notes:create_app\nlabels: {{demo: y}}\n"
        for number in range(200)
    )
    (scratch / "demos.yaml").write_text("---\n".join(documents))


def shown(scene: Scene, folder: Path, env: dict[str, str]) -> str:
    """Run a scene's command on a terminal; return what stands there, with its colours."""
    words = [sys.executable, "-m", "services.cli", *shlex.split(scene.command)[1:]]
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        os.chdir(folder)
        os.execve(words[0], words, env)
    output = b""
    with contextlib.suppress(OSError):  # how a terminal says that its program has ended
        while piece := os.read(terminal, 65536):
            output += piece
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # A bar is drawn over itself: each drawing begins at the line's begin.
    frames = output.decode().replace("\r\n", "\n").split("\r\x1b[2K")
    # A bar that is done takes its line away.
    text = re.sub(r"[^\n]*\n(\x1b\[\?25h)?\r?\x1b\[1A\x1b\[2K", "", frames[-1])
    text = re.sub(r"\x1b\[\?25[hl]", "", text)
    if scene.moment:
        half_way = [frame for frame in frames if re.search(scene.moment, plain(frame))]
        text = half_way[0] if half_way else next((f for f in frames if scene.expected in plain(f)), text)
    if status != scene.status or scene.expected not in plain(text):
        sys.exit(f"pictures: {scene.command} ended with {status} and this:\n{text}")
    return text.strip("\n")


def plain(text: str) -> str:
    """Return a text without its colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def svg(name: str, command: str, text: str) -> str:
    """Return the picture of a command and what it has shown."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(Text("$ ", style="bold green") + Text(command, style="bold"))
        console.print(Text.from_ansi(text))
        made = console.export_svg(title="", theme=MONOKAI, unique_id=name)
    # Fonts would be loaded from elsewhere.
    made = re.sub(r"\s*@font-face \{.*?\}", "", made, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in made.splitlines()) + "\n"


if __name__ == "__main__":
    main()
