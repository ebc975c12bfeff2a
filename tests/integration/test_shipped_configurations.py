"""The shipped configurations start programs that exist, with flags that they know."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose/compose.yaml").read_text())


def shipped_commands() -> Iterator[tuple[str, str]]:
    for line in (ROOT / "compose/Procfile").read_text().splitlines():
        name, _, command = line.partition(": ")
        yield f"Procfile {name}", command
    for name, service in COMPOSE["services"].items():
        yield f"compose {name}", service["command"]


@cache
def known_flags(module: str) -> frozenset[str]:
    shown = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}"},
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    )
    return frozenset(re.findall(r"--[a-z][a-z-]+", shown.stdout))


@pytest.mark.parametrize(("name", "command"), list(shipped_commands()))
def test_a_shipped_command_uses_flags_that_exist(name: str, command: str) -> None:
    python, minus_m, module, *flags = shlex.split(command)
    assert (python, minus_m) == ("python", "-m")
    used = {flag for flag in flags if flag.startswith("--")}
    assert used
    assert used <= known_flags(module)


def test_containers_find_each_other_and_keep_their_data() -> None:
    services = COMPOSE["services"]
    assert set(services) == {"control-plane", "node-1"}
    node = shlex.split(services["node-1"]["command"])
    flags = dict(zip(node[3::2], node[4::2], strict=True))
    assert flags["--control-plane"].split(":")[0] in services
    assert flags["--advertise"].split(":")[0] in services
    for service in services.values():
        assert (ROOT / "compose" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        volume, _, path = service["volumes"][0].partition(":")
        assert volume in COMPOSE["volumes"]
        assert f"{path}" in service["command"]


def test_the_image_copies_what_the_package_is_built_from() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "compose/Dockerfile").read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert {"pyproject.toml", "constraints.txt", "README.md", "services", "runtime_node", "gen"} <= sources
    assert all((ROOT / source).exists() for source in sources)
