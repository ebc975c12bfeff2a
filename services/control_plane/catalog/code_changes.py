"""Whether the disk has other code than an app runs, asked for an update that leaves what runs as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition
from services.control_plane.rules.app_defaults import normalize_app, runtime_fields_changed
from services.control_plane.rules.conditions import CODE_CHANGED, get_condition
from services.control_plane.rules.masks import apply_update
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import AppRecord, Version
from services.rpc.errors import SupervisorError
from services.rpc.pipeline.call import Caller

ASK_SECONDS = 1.0
"""How long an update waits for what a node tells: it is worth no more than that."""


class Figures(Protocol):
    """Where what nodes tell of running instances comes from."""

    async def with_figures(self, apps: Sequence[pb.App], seconds: float) -> list[pb.App]:
        """Return copies of apps with what is told of them within `seconds`."""
        ...


@dataclass(frozen=True, slots=True)
class CodeChange:
    """Other code on disk than one version of one app runs."""

    uid: str
    target: Version
    condition: Condition

    def is_of(self, record: AppRecord) -> bool:
        """Tell whether it is that version of the app still."""
        return (record.uid, record.target) == (self.uid, self.target)


class CodeChanges:
    """Asks the nodes, at any replica. Lives on one loop."""

    def __init__(self, mirror: Mirror, figures: Figures) -> None:
        self._apps = mirror.apps
        self._figures = figures

    async def found(self, request: pb.UpdateAppRequest, name: str, caller: Caller) -> CodeChange | None:
        """Return what an update that swaps nothing leaves unloaded; None too where it can't be told."""
        record = self._apps.get(name)
        if record is None or request.validate_only or not _leaves_alone(record, request):
            return None
        (app,) = await self._figures.with_figures([record.public], min(ASK_SECONDS, caller.timeout / 2))
        condition = get_condition(app.conditions, CODE_CHANGED)
        return None if condition is None else CodeChange(record.uid, record.target, condition)


def _leaves_alone(record: AppRecord, request: pb.UpdateAppRequest) -> bool:
    """Tell whether an update changes nothing of what runs. One that is refused changes nothing at all."""
    try:
        spec = normalize_app(apply_update(record.spec, request.app, request.update_mask))
    except SupervisorError:
        return False
    same_wish = spec.desired_state == record.spec.desired_state
    return same_wish and not runtime_fields_changed(record.spec, spec)
