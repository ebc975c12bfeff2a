"""What every test may use: programs a user may lack (`tool`), PostgreSQL, the seed of what is drawn."""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import seeds
from tests.postgresql import Server

ROOT = Path(__file__).resolve().parents[1]

# What is imported and collected, a million objects, stays until the end.
gc.disable()


# How long an example takes says more about the machine than about what is tried.
TIMELESS = settings(database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fixed", TIMELESS, derandomize=True)
settings.register_profile("new", TIMELESS, derandomize=False, print_blob=True)
settings.load_profile("new" if seeds.NEW else "fixed")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep programs off fixed ports, and quick to start; draw hypothesis's examples from the run's seed."""
    # Programs that tests start would all try for the same port, which a test of metrics may want.
    os.environ.setdefault("APPSUPERVISOR_METRICS_LISTEN", "off")
    # Frameworks take a node 0.6 s of CPU to preload, and few tests have apps in processes of their own.
    os.environ.setdefault("APPSUPERVISOR_PRELOAD", "none")
    if seeds.NEW and config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(seeds.SEED)


def pytest_collection_finish() -> None:
    """Let no collection, of which nodes make one after each stop, walk what was collected of tests."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    """Tell the seed."""
    return seeds.described()


def tool_path() -> str:
    """Return PATH and, behind it, where .ci/run and `go install` put programs."""
    folders = [os.environ.get("PATH", ""), str(ROOT / ".cache/tools/bin")]
    folders.append(str(ROOT / ".cache/tools/node_modules/.bin"))
    folders.append(os.environ.get("GOBIN", ""))
    folders += [f"{path}/bin" for path in os.environ.get("GOPATH", "").split(os.pathsep) if path]
    folders.append(str(Path.home() / "go/bin"))
    return os.pathsep.join(folder for folder in folders if folder)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose programs are missing; where everything is to be checked that is a failure."""
    wanted = [name for mark in item.iter_markers("tool") for name in mark.args]
    missing = [name for name in wanted if shutil.which(name, path=tool_path()) is None]
    if not missing:
        return
    message = f"needs {', '.join(missing)} on PATH (bash .ci/run installs what it can)"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """Return a PostgreSQL server, started once for the session."""
    with ExitStack() as stack:
        yield Server(stack)


@pytest.fixture
def run_tool(tmp_path: Path) -> "RunTool":
    """Return a function that runs a program found by the `tool` marker and returns what it printed."""
    return RunTool(tmp_path)


class RunTool:
    """Runs programs of the `tool` marker in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def python(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run this Python."""
        return self(sys.executable, *arguments, cwd=cwd)

    def __call__(
        self, *command: str, cwd: Path | None = None, timeout: float = 60, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` for at most `timeout` seconds; the caller judges its exit code."""
        program = shutil.which(command[0], path=tool_path())
        assert program is not None, f"{command[0]}: name it in the test's tool marker"
        return subprocess.run(
            [program, *command[1:]],
            cwd=cwd or self.folder,
            env={**os.environ, "PATH": tool_path(), **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
