"""The README's tour works word for word, in order, in one shell, beside a running `make up`."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import tool_path
from tests.e2e.stack import ROOT, eventually, free_port


def tour() -> list[tuple[str, str]]:
    """Return the tour's commands, each with what its output has to contain."""
    text = (ROOT / "README.md").read_text()
    steps: list[tuple[str, str]] = []
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        command = ""
        for line in block.splitlines():
            part, _, expected = line.partition("  # → ")
            command += part
            try:
                shlex.split(command)
            except ValueError:
                command += "\n"  # a quotation goes on in the next line
                continue
            steps.append((command, expected))
            command = ""
    return steps


def own_app() -> str:
    """Return the file that the README has its reader write."""
    found = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, "the README's own app was not found"
    return found[1]


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[dict[str, int]]:
    """Run `make up` on ports of its own; give them by the port that the README names."""
    ports = {"7400": free_port(), "7401": free_port(), "8080": free_port()}
    names = ("CONTROL_PLANE_PORT", "NODE_PORT", "HTTP_PORT")
    settings = {f"APPSUPERVISOR_{name}": str(port) for name, port in zip(names, ports.values(), strict=True)}
    settings["APPSUPERVISOR_DATA_DIR"] = str(tmp_path / "data")
    (tmp_path / "my").mkdir()
    (tmp_path / "my/hello.py").write_text(own_app())
    log = tmp_path / "up.log"
    with log.open("wb") as output:
        up = subprocess.Popen(
            [sys.executable, "-m", "compose.local", "--app-dir", str(tmp_path / "my")],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}", **settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: "Ctrl-C stops" in log.read_text() or up.poll() is not None, "up", 120)
        assert up.poll() is None, log.read_text()
        yield ports
        up.send_signal(signal.SIGINT)
        assert up.wait(60) == 0
    finally:
        up.kill()
        up.wait()
        print(log.read_text(errors="replace"))


@pytest.mark.tool("grpcurl", "curl", "bash", "pgrep")
def test_the_tour_works_word_for_word(ports: dict[str, int], tmp_path: Path) -> None:
    steps = tour()
    assert len(steps) > 15, "the README's tour was not found"
    script = ["set -u -o pipefail"]
    for number, (command, _) in enumerate(steps):
        own = re.sub(r"(?<=:)(7400|7401|8080)\b", lambda found: str(ports[found[1]]), command)
        script.append(f"{{ {own}\n}} > {number}.out 2>&1 || exit {number + 1}")
    (tmp_path / "tour.sh").write_text("\n".join(script))
    ran = subprocess.run(
        ["bash", "tour.sh"],
        cwd=tmp_path,
        env={**os.environ, "PATH": tool_path()},
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )
    for number, (command, expected) in enumerate(steps):
        output = tmp_path / f"{number}.out"
        assert output.exists(), f"the tour ended before: {command}"
        text = output.read_text()
        assert ran.returncode != number + 1, f"{command}\n{text}"
        assert expected in text, f"{command}\n{text}"
    assert ran.returncode == 0
