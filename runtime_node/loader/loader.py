"""Finds and imports the code that an entrypoint names, with one typed error per way to fail."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from runtime_node.isolation.current import running_as
from runtime_node.loader import hooks, static
from runtime_node.loader.code import LoadedCode
from runtime_node.loader.code_files import CodeFiles, CodeState
from runtime_node.loader.detect import Finding, Shape, examine
from runtime_node.loader.entrypoint import Entrypoint, parse_entrypoint
from runtime_node.loader.failures import failure, with_refusal
from runtime_node.loader.listing import no_such_module
from runtime_node.loader.locations import Lease, Locations
from runtime_node.loader.process_only import IsolationUnsupportedError
from runtime_node.loader.trees import PRIVATE_PACKAGES
from services.rpc.errors import SupervisorError


class Loader:
    """Loads code from `app_dirs`, in their order, and from the installed packages.

    By default the modules of each directory are private to it, so that directories with modules of the same
    names live in one process. `plain` is for a process that hosts one app: its directory goes on `sys.path`
    and its modules have their own names, as under any other server. Safe to use from any thread.
    """

    def __init__(
        self,
        app_dirs: Sequence[Path] = (),
        *,
        plain: bool = False,
        private_packages: Iterable[str] = PRIVATE_PACKAGES,
        secrets: Iterable[str] = (),
    ) -> None:
        """`secrets` are blanked out in errors; only a process of one app knows them when it imports."""
        self._locations = Locations(app_dirs, private_packages)
        self._files = CodeFiles()
        self._plain = plain
        self._secrets = tuple(secrets)
        self._findings: WeakKeyDictionary[FunctionType, Finding] = WeakKeyDictionary()
        """What functions turned out to be, for as long as their code is loaded."""
        if not plain:
            hooks.install()

    @property
    def app_dirs(self) -> tuple[Path, ...]:
        """The directories, as absolute paths."""
        return self._locations.directories

    def has(self, entrypoint: str) -> bool:
        """Tell whether there is a package or module of the entrypoint's first name, running none of it.

        Raises SupervisorError `ENTRYPOINT_MALFORMED`.
        """
        directory, inside = self._locations.locate(parse_entrypoint(entrypoint))
        return directory is not None or static.is_installed(inside.top)

    def kind_of(self, entrypoint: str) -> static.Kind | None:
        """Tell from the source alone, running none of it, what `entrypoint` names; None if it cannot be told.

        Raises SupervisorError `ENTRYPOINT_MALFORMED`.
        """
        directory, inside = self._locations.locate(parse_entrypoint(entrypoint))
        return static.kind_of(directory, inside)

    def needs_process(self, entrypoint: str) -> str | None:
        """Return the package that `entrypoint`'s code imports and that needs a process, running none of it.

        Raises SupervisorError `ENTRYPOINT_MALFORMED`.
        """
        directory, inside = self._locations.locate(parse_entrypoint(entrypoint))
        return static.needs_process(directory, inside)

    def code_of(self, entrypoint: str) -> CodeState | None:
        """Tell what code is on disk for `entrypoint`; None if there is none. For one thread at a time.

        Raises SupervisorError `ENTRYPOINT_MALFORMED`.
        """
        directory, inside = self._locations.locate(parse_entrypoint(entrypoint))
        return self._files.look(directory, inside.top)

    def load(self, entrypoint: str, *, private: bool = False) -> LoadedCode:
        """Import what `entrypoint` names. Blocks for as long as the app's code takes.

        Instances of the same code share its modules; with `private` they are loaded for this caller alone,
        so that two instances of an app object share no state. Raises SupervisorError `ENTRYPOINT_MALFORMED`,
        `ENTRYPOINT_MODULE_NOT_FOUND`, `ENTRYPOINT_IMPORT_FAILED`, `ENTRYPOINT_ATTRIBUTE_NOT_FOUND`,
        `ENTRYPOINT_NOT_AN_APP`, or `ISOLATION_UNSUPPORTED` for code that needs a process of its own.
        """
        parsed = parse_entrypoint(entrypoint)
        directory, inside = self._locations.locate(parsed)
        if self._plain:
            self._put_on_path(directory)
            return self._load(parsed, inside, None)
        if private:
            lease = self._locations.lease_private(directory, inside.top)
        elif directory is not None:
            lease = self._locations.lease(directory)
        else:
            return self._load(parsed, inside, None)
        try:
            with hooks.loading(lease.tree), running_as(lease.tree.scope):
                return self._load(parsed, inside, lease)
        except BaseException:
            lease.release(failed=True)
            raise

    def close(self) -> None:
        """Unload the code that no app uses any more."""
        self._locations.close()

    def _load(self, named: Entrypoint, inside: Entrypoint, lease: Lease | None) -> LoadedCode:
        module = _import(inside, lease, self._secrets, self.app_dirs)
        target = _resolve(inside, module, self._secrets)
        finding = self._finding(target)
        if finding.shape is Shape.UNKNOWN:
            raise SupervisorError(
                "ENTRYPOINT_NOT_AN_APP", f"{named} is neither an app nor a factory: it is {finding.found}"
            )
        return LoadedCode(named, target, finding, lease)

    def _finding(self, target: Any) -> Finding:
        """Return what the entrypoint names; a function is looked at once, by the first start of its code."""
        if type(target) is not FunctionType:
            return examine(target)
        finding = self._findings.get(target)
        if finding is None:
            finding = self._findings[target] = examine(target)
        return finding

    def _put_on_path(self, directory: Path | None) -> None:
        chosen = [directory] if directory is not None else []
        for path in reversed([*chosen, *self.app_dirs]):
            if str(path) in sys.path:
                sys.path.remove(str(path))
            sys.path.insert(0, str(path))


def _import(
    entrypoint: Entrypoint, lease: Lease | None, secrets: Sequence[str], app_dirs: Sequence[Path]
) -> ModuleType:
    error: SupervisorError
    try:
        if lease is None:
            return importlib.import_module(entrypoint.module)
        return lease.tree.import_module(entrypoint.module)
    except ModuleNotFoundError as fault:
        if _is_missing(entrypoint.module, fault):
            error = no_such_module(str(fault.name), app_dirs)
        else:
            error = _import_failed(entrypoint, fault, secrets)
    except IsolationUnsupportedError as fault:
        error = failure("ISOLATION_UNSUPPORTED", f"{entrypoint} cannot share a process: {fault}", fault)
    except BaseException as fault:  # noqa: BLE001 - whatever an app raises at import is its own failure
        error = _import_failed(entrypoint, fault, secrets)
    # Raised outside the handlers, so that it does not keep the app's frames as its context.
    raise error


def _is_missing(module: str, fault: ModuleNotFoundError) -> bool:
    return fault.name is not None and (module == fault.name or module.startswith(fault.name + "."))


def _import_failed(entrypoint: Entrypoint, fault: BaseException, secrets: Sequence[str]) -> SupervisorError:
    message = f"importing {entrypoint.module} raised {with_refusal(fault, secrets)}"
    return failure("ENTRYPOINT_IMPORT_FAILED", message, fault, secrets=secrets)


def _resolve(entrypoint: Entrypoint, module: ModuleType, secrets: Sequence[str]) -> Any:
    target: Any = module
    path = entrypoint.module + ":"
    for name in entrypoint.attributes:
        error: SupervisorError
        try:
            target = getattr(target, name)
        except AttributeError:
            error = _attribute_missing(path, target, name)
        except BaseException as fault:  # noqa: BLE001 - a module's __getattr__ and properties run app code
            message = f"reading {path}{name} raised {with_refusal(fault, secrets)}"
            error = failure("ENTRYPOINT_IMPORT_FAILED", message, fault, secrets=secrets)
        else:
            path += name + "."
            continue
        raise error
    return target


def _attribute_missing(path: str, target: Any, name: str) -> SupervisorError:
    owner = path.rstrip(".:")
    known = [n for n in dir(target) if not n.startswith("__")]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return SupervisorError("ENTRYPOINT_ATTRIBUTE_NOT_FOUND", f"{owner} has no attribute {name!r}{hint}")
