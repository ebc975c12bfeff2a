"""Specs of apps for tests of their rules."""

from __future__ import annotations

from typing import Any

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from services.control_plane.rules.app_defaults import normalize_app
from services.control_plane.rules.app_rules import app_violations


def valid(**fields: Any) -> App:
    return App(**{"entrypoint": "pkg.mod:app", **fields})


def broken(**fields: Any) -> list[str]:
    """Return the fields that are in breach, the prefix `app.` left out."""
    found = app_violations(normalize_app(valid(**fields)))
    assert all(violation.rule for violation in found)
    return [violation.field.removeprefix("app.") for violation in found]
