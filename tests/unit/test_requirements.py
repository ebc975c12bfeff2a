"""What a folder's code needs is told when it is missing, and only then."""

from pathlib import Path

import pytest

from compose.local.reload import BESIDE_MODULES, is_in
from compose.local.requirements import command_for, missing_in
from runtime_node.loader.code_files import CODE_SUFFIXES


@pytest.mark.parametrize(
    ("file", "text", "missing"),
    [
        ("requirements.txt", "fastapi\nno-such-thing>=1  # why\n-r other.txt\n# x\n", ["no-such-thing>=1"]),
        ("requirements.txt", "fastapi>9999\nno-such-thing; python_version < '3'\n", ["fastapi>9999"]),
        ("requirements.txt", "git+https://example.com/x\n!!\n", []),
        ("pyproject.toml", '[project]\ndependencies = ["no-such-thing", "fastapi"]\n', ["no-such-thing"]),
        ("pyproject.toml", "[project\n", []),
        ("notes.txt", "no-such-thing\n", []),
    ],
)
def test_what_is_missing_is_told(file: str, text: str, missing: list[str], tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    assert missing_in(tmp_path) == missing
    assert command_for(tmp_path)[1:4] == ["-m", "pip", "install"]


@pytest.mark.parametrize(
    ("entrypoint", "expected"),
    [
        ("hello:app", True),
        ("pack.web:app", True),
        ("my.hello:app", True),
        ("other:app", False),
        ("my:app", False),
    ],
)
def test_which_apps_use_a_folder(entrypoint: str, expected: bool, tmp_path: Path) -> None:
    folder = tmp_path / "my"
    (folder / "pack").mkdir(parents=True)
    (folder / "hello.py").touch()
    assert is_in(entrypoint, folder) is expected


def test_what_reloads_an_app_is_what_its_digest_is_of() -> None:
    assert {*BESIDE_MODULES, ".py", ".pyc", ".pyd", ".pyx", ".so"} == CODE_SUFFIXES
