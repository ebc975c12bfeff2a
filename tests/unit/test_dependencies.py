"""What pyproject.toml says that the programs need is all that they need."""

import ast
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
OURS = {"services", "runtime_node", "compose", "appsupervisor"}


def test_what_the_programs_import_at_their_start_is_installed_with_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = _with_all_they_need(Requirement(one).name for one in project["dependencies"])
    owners = packages_distributions()
    missing = set()
    for folder in ("services", "runtime_node", "compose/local"):
        for path in (ROOT / folder).rglob("*.py"):
            for statement in ast.parse(path.read_text()).body:
                for top in _imported(statement) - sys.stdlib_module_names:
                    if top not in OURS and installed.isdisjoint(map(canonicalize_name, owners.get(top, ()))):
                        missing.add((str(path.relative_to(ROOT)), top))
    assert missing == set()


def _imported(statement: ast.stmt) -> set[str]:
    """Return the packages that a statement imports."""
    match statement:
        case ast.Import(names=names):
            return {one.name.partition(".")[0] for one in names}
        case ast.ImportFrom(module=str(module), level=0):
            return {module.partition(".")[0]}
    return set()


def _with_all_they_need(names: Iterable[str]) -> set[str]:
    """Return distributions with all that comes along when they are installed."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        for text in requires(name) or ():
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                waiting.append(one.name)
    return found
