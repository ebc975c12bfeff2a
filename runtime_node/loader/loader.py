"""Finds and imports the code that an entrypoint names, with one typed error per way to fail."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from runtime_node.loader.code import LoadedCode
from runtime_node.loader.detect import Shape, examine
from runtime_node.loader.entrypoint import Entrypoint, parse_entrypoint
from runtime_node.loader.failures import failure, one_line
from services.rpc.errors import SupervisorError


class Loader:
    """Loads code from `app_dirs`, in their order, and from the installed packages."""

    def __init__(self, app_dirs: Sequence[Path] = ()) -> None:
        self.app_dirs = tuple(Path(directory).resolve() for directory in app_dirs)
        for directory in reversed(self.app_dirs):
            if str(directory) not in sys.path:
                sys.path.insert(0, str(directory))

    def load(self, entrypoint: str) -> LoadedCode:
        """Import what `entrypoint` names. Blocks for as long as the app's code takes.

        Raises SupervisorError `ENTRYPOINT_MALFORMED`, `ENTRYPOINT_MODULE_NOT_FOUND`,
        `ENTRYPOINT_IMPORT_FAILED`, `ENTRYPOINT_ATTRIBUTE_NOT_FOUND` or `ENTRYPOINT_NOT_AN_APP`.
        """
        parsed = parse_entrypoint(entrypoint)
        module = self._import(parsed)
        target = _resolve(parsed, module)
        finding = examine(target)
        if finding.shape is Shape.UNKNOWN:
            raise SupervisorError(
                "ENTRYPOINT_NOT_AN_APP", f"{parsed} is neither an app nor a factory: it is {finding.found}"
            )
        return LoadedCode(parsed, target, finding)

    def _import(self, entrypoint: Entrypoint) -> ModuleType:
        error: SupervisorError
        try:
            return importlib.import_module(entrypoint.module)
        except ModuleNotFoundError as fault:
            if _is_missing(entrypoint.module, fault):
                error = SupervisorError(
                    "ENTRYPOINT_MODULE_NOT_FOUND", f"there is no module {fault.name!r} on this node"
                )
            else:
                error = _import_failed(entrypoint, fault)
        except BaseException as fault:  # noqa: BLE001 - whatever an app raises at import is its own failure
            error = _import_failed(entrypoint, fault)
        raise error


def _is_missing(module: str, fault: ModuleNotFoundError) -> bool:
    return fault.name is not None and (module == fault.name or module.startswith(fault.name + "."))


def _import_failed(entrypoint: Entrypoint, fault: BaseException) -> SupervisorError:
    message = f"importing {entrypoint.module} raised {one_line(fault)}"
    return failure("ENTRYPOINT_IMPORT_FAILED", message, fault)


def _resolve(entrypoint: Entrypoint, module: ModuleType) -> Any:
    target: Any = module
    path = entrypoint.module + ":"
    for name in entrypoint.attributes:
        error: SupervisorError
        try:
            target = getattr(target, name)
        except AttributeError as fault:
            error = _attribute_missing(path, target, name, fault)
        except BaseException as fault:  # noqa: BLE001 - a module's __getattr__ and properties run app code
            error = failure(
                "ENTRYPOINT_IMPORT_FAILED", f"reading {path}{name} raised {one_line(fault)}", fault
            )
        else:
            path += name + "."
            continue
        raise error
    return target


def _attribute_missing(path: str, target: Any, name: str, fault: AttributeError) -> SupervisorError:
    owner = path.rstrip(".:")
    known = [n for n in dir(target) if not n.startswith("__")]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return failure("ENTRYPOINT_ATTRIBUTE_NOT_FOUND", f"{owner} has no attribute {name!r}{hint}")
