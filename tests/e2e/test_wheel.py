"""The wheel gives `appsupervisor`, works without the repository, and takes no general name."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.e2e.stack import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*build, "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=120)
    return next(folder.glob("*.whl"))


def test_it_takes_no_name_that_another_package_could_have(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = {name.partition("/")[0] for name in content.namelist()}
    own = {name for name in names if not name.endswith((".dist-info", ".data"))}
    assert own == {"appsupervisor", "appsupervisor_programs"}


def test_its_programs_start_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True, timeout=110,
    ).stdout.strip()  # fmt: skip
    # What it depends on is here already; its own files come from the wheel alone.
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", str(wheel)],
        check=True,
        timeout=120,
    )
    program = tmp_path / "venv/bin/appsupervisor"
    for arguments in (["--help"], ["control-plane", "--help"], ["node", "--help"], ["up", "--help"]):
        shown = subprocess.run(
            [program, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=110, check=True
        )
        assert "--" in shown.stdout
    ran = subprocess.run(
        [python, "-c", "import services"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert "No module named 'services'" in ran.stderr
