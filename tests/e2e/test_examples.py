"""Each example works as its page says: its commands, word for word, beside a stack that has its folder."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import ROOT
from tests.e2e.test_up import Up

EXAMPLES = sorted(page.parent for page in (ROOT / "examples").glob("*/README.md"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("examples")
    up = Up(folder, 0, *(f"--app-dir={example}" for example in EXAMPLES))
    try:
        yield up.wait()
        assert up.stop() == 0
    finally:
        up.process.kill()
        up.process.wait()
        print(up.text)


def test_the_list_of_examples_names_each() -> None:
    listed = (ROOT / "examples/README.md").read_text()
    for example in EXAMPLES:
        assert f"[{example.name}]({example.name})" in listed


@pytest.mark.slow
@pytest.mark.tool("curl", "bash")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_works_as_its_page_says(example: Path, stack: Up, tmp_path: Path) -> None:
    found = re.search(r"Control plane (\S+), node", stack.text)
    assert found
    address, port = found[1], stack.url("shop").rpartition(":")[2].strip("/")
    page = (example / "README.md").read_text()
    commands = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert commands, "the page has no commands"
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/appsupervisor"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m services.cli "$@"\n')
    program.chmod(0o755)
    (tmp_path / "bin/python").symlink_to(shutil.which(sys.executable) or sys.executable)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}{os.pathsep}{os.pathsep.join(sys.path)}",
        "APPSUPERVISOR_ADDRESS": address,
    }
    for line in re.split(r"\n(?=appsupervisor|curl|python)", commands[0].strip()):
        command, _, expected = line.partition("  # → ")
        command = command.replace(":8080", f":{port}").replace("127.0.0.1:7400", address)
        ran = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110,
            check=False,
        )  # fmt: skip
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
        assert expected.strip().replace(":8080", f":{port}") in ran.stdout, f"{command}\n{ran.stdout}"
