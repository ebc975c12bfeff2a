"""How far the versions of a node and of its control plane may be apart."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import runtime_node
from services.spec.versions import VERSION, is_too_far


@pytest.mark.parametrize(
    ("theirs", "too_far"),
    [
        ("1.4.0", False),
        ("1.4.9", False),
        ("1.3.0", False),
        ("1.5.2", False),
        ("1.5.0-rc1", False),
        ("1.5", False),
        ("1.2.9", True),
        ("1.6.0", True),
        ("1.6.0+local", True),
        ("0.4.0", True),
        ("2.4.0", True),
        ("", False),
        ("dev", False),
        ("1", False),
        ("1.x", False),
    ],
)
def test_one_minor_version_in_either_direction_is_near_enough(theirs: str, too_far: bool) -> None:
    assert is_too_far(theirs, "1.4.0") is too_far


def test_both_programs_and_the_package_have_one_version() -> None:
    package = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    assert package["project"]["version"] == runtime_node.__version__ == VERSION
