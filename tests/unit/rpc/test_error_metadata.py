"""What varies in an error's message is in its ErrorInfo too (AIP-193): looked for where errors are made."""

import ast
from collections.abc import Iterator

import pytest
from google.rpc.error_details_pb2 import ErrorInfo

from services.rpc.errors import CODES, SupervisorError, Violation, invalid_fields
from services.rpc.status import DOMAIN, to_status
from tests.conftest import ROOT

# What an app's own code or its library says is text of theirs, and has its place in the detail.
# (`services.rpc.errors` only puts violations into a message, which `to_status` tells.)
OF_AN_APP = {"loader", "tiers", "instances", "isolation"}
WORDING = {"counted", "_told"}
"""Functions that word their first argument."""


def made(folder: str) -> Iterator[tuple[str, ast.Call, dict[str, ast.expr]]]:
    """Yield each place that makes an error, with what its function gives names to."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if OF_AN_APP & set(path.relative_to(ROOT).parts) or path.match("services/rpc/errors.py"):
            continue
        tree = ast.parse(path.read_text())
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            names: dict[str, ast.expr] = {}
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    # What is given more than one value is told by its name.
                    name = node.targets[0].id
                    names[name] = ast.Name(name) if name in names else node.value
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "SupervisorError":
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node, names


def worded(part: ast.expr) -> ast.expr:
    """Return what varies of an expression that puts a number, or a list's length, into words."""
    if isinstance(part, ast.Call) and ast.unparse(part.func) in WORDING:
        return part.args[0]
    return part


def varying(message: ast.expr, names: dict[str, ast.expr]) -> set[str]:
    """Return the expressions that a message is put together from."""
    if isinstance(message, ast.Name) and not isinstance(names.get(message.id, message), ast.Name):
        return varying(names[message.id], names)
    if isinstance(message, ast.JoinedStr):
        # Upper case names a constant.
        parts = (worded(part.value) for part in message.values if isinstance(part, ast.FormattedValue))
        return {ast.unparse(part) for part in parts if not ast.unparse(part).isupper()}
    if isinstance(message, ast.BinOp):
        return varying(message.left, names) | varying(message.right, names)
    return set()


@pytest.mark.parametrize("folder", ["services", "runtime_node"])
def test_what_varies_in_a_message_is_in_the_metadata_too(folder: str) -> None:
    missing = []
    for place, call, names in made(folder):
        told = {
            ast.unparse(part)
            for keyword in call.keywords
            if keyword.arg in ("resource", "metadata", "violations")
            for part in [*ast.walk(keyword.value), *ast.walk(names.get(ast.unparse(keyword.value), keyword))]
            if isinstance(part, ast.expr)
        }
        missing += [f"{place}: {part}" for part in varying(call.args[1], names) - told]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("reason", sorted(CODES))
def test_every_reason_carries_its_domain_resource_and_metadata(reason: str) -> None:
    error = SupervisorError(reason, "x", resource="apps/a", metadata={"key": "value", "detail": "Traceback"})
    status = to_status(error)
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (reason, "appsupervisor.dev")
    assert DOMAIN == "appsupervisor.dev"
    assert dict(info.metadata) == {"key": "value", "resource": "apps/a"}
    assert status.code == CODES[reason].value


def test_of_very_many_violations_the_first_are_told_and_the_rest_counted() -> None:
    error = invalid_fields([Violation(f"app.labels[{n}]", "is bad") for n in range(150_000)])
    assert len(error.violations) == 100
    assert error.message == "app.labels[0]: is bad (and 149,999 more)"
    assert error.metadata == {"more": "149999"}


def test_the_first_violation_is_in_the_metadata() -> None:
    info = ErrorInfo()
    to_status(invalid_fields([Violation("app.env", "is bad")])).details[0].Unpack(info)
    assert dict(info.metadata) == {"field": "app.env", "rule": "is bad"}
