"""One app that cannot be looked at keeps no other one from being scaled or judged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from appsupervisor.catalog.v1.app_catalog_pb2 import App, Canary
from services.control_plane.controller.autoscaling import Autoscaling
from services.control_plane.controller.canaries import Canaries
from services.control_plane.store.records import AppRecord, Version


def record(name: str) -> AppRecord:
    spec = App(name=name, entrypoint="a:b")
    spec.autoscale.max_replicas = spec.autoscale.target_concurrency = 2
    spec.rollout.canary.weight_percent = 10
    status = App(canary=Canary(generation=1, epoch=1))
    return AppRecord(name, f"uid of {name}", spec, status, 1, Version(1, 1), 1, 1)


@pytest.mark.parametrize("kind", [Autoscaling, Canaries])
async def test_the_next_app_is_looked_at_all_the_same(kind: Any) -> None:
    apps = {name: record(name) for name in ("apps/bad", "apps/good")}
    mirror: Any = SimpleNamespace(apps=apps, autoscaled=lambda: list(apps), on_trial=lambda: list(apps))
    links: Any = SimpleNamespace(keep_figures=lambda _: None)
    seen: list[str] = []

    async def look_at(app: AppRecord, _: Any) -> None:
        seen.append(app.name)
        if app.name == "apps/bad":
            raise ZeroDivisionError

    looks = kind(mirror, links, None, lambda: 0)
    with patch.object(looks, "_look_at", look_at):
        await looks.look()
    assert seen == ["apps/bad", "apps/good"]
