"""Which code a node tells of: names alone, of what could be imported here."""

import json
from pathlib import Path

from runtime_node.loader import listing
from runtime_node.loader.listing import importable


def test_modules_and_packages_of_all_places_are_named_and_nothing_else(tmp_path: Path) -> None:
    apps, installed = tmp_path / "my-apps", tmp_path / "site"
    for folder in (apps / "shop", apps / "__pycache__", apps / "not-a-module", installed / "blog"):
        folder.mkdir(parents=True)
    for file in ("wiki.py", "_private.py", "fast.cpython-311-x86_64.so", "notes.txt", "odd-name.py"):
        (apps / file).touch()
    missing = str(tmp_path / "nowhere")
    assert importable([apps], [str(installed), missing, missing + ".zip"]) == [
        "blog", "fast", "my_apps", "shop", "wiki",
    ]  # fmt: skip


def test_the_standard_library_is_not_named_and_what_is_installed_is() -> None:
    names = importable([])
    assert "grpc" in names
    assert "json" not in names, json


def test_of_too_many_none_is_told(tmp_path: Path) -> None:
    for number in range(listing.MOST + 1):
        (tmp_path / f"m{number}.py").touch()
    assert importable([tmp_path], []) == []
