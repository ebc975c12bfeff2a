"""The programs by the command line: what each one's `--help` has for an example runs, and ends well."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli.programs import PROGRAMS
from tests.e2e.stack import ROOT, eventually, free_port
from tests.envoy import needed_envoy

READY = {
    "up": "Ctrl-C stops everything",
    "control-plane": "control_plane.ready",
    "node": "node.ready",
    "gateway": "gateway.ready",
}
COMMAND_LINE = [sys.executable, "-P", "-m", "services.cli"]


@pytest.mark.slow
@pytest.mark.timeout(360)
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_example_of_a_programs_help_runs_and_ends_with_zero(name: str, tmp_path: Path) -> None:
    (tmp_path / "my").mkdir()
    (tmp_path / "calendar.py").write_text("raise RuntimeError('a file of the caller')")
    ports = {f"APPSUPERVISOR_{port}_PORT": "0" for port in ("CONTROL_PLANE", "NODE", "HTTP")}
    env = {**os.environ, **ports, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}", "COLUMNS": "200"}
    if name == "gateway":
        needed_envoy()
        env["APPSUPERVISOR_XDS_LISTEN"] = "127.0.0.1:0"
    shown = subprocess.run(
        [*COMMAND_LINE, name, "--help"], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    example = PROGRAMS[name][1].partition("Example: ")[2]
    assert example
    assert f"Example: {example}" in " ".join(shown.stdout.split())
    own = re.sub(r"127\.0\.0\.1:\d+", lambda _: f"127.0.0.1:{free_port()}", example)
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND_LINE, *shlex.split(own)[1:]], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        eventually(lambda: READY[name] in log.read_text() or process.poll() is not None, "it is ready", 120)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
        assert READY[name] in log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
