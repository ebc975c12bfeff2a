"""Which lane an instance starts in: the tier it asks for, or the one that fits its code."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypeAlias

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.lanes.lane import Lane
from runtime_node.loader import Loader
from services.rpc.errors import SupervisorError

Tier: TypeAlias = InstanceSpec.IsolationTier.ValueType


class Lanes:
    """The lanes of this node, by tier."""

    def __init__(self, lanes: Mapping[Tier, Lane], loader: Loader) -> None:
        self._lanes = lanes
        self._loader = loader

    def has(self, tier: Tier) -> bool:
        """Return whether this node has a lane of that tier."""
        return tier in self._lanes

    async def choose(self, spec: InstanceSpec, floor: Tier) -> Lane:
        """Return the lane for an instance: never looser than `floor`, which a demotion has set.

        Raises SupervisorError ENTRYPOINT_MALFORMED, and ISOLATION_UNSUPPORTED for a tier that is not here.
        """
        tier = max(spec.isolation or await self._fitting(spec), floor)
        lane = self._lanes.get(tier)
        if lane is None:
            raise SupervisorError(
                "ISOLATION_UNSUPPORTED",
                f"This node has no {InstanceSpec.IsolationTier.Name(tier)} tier.",
                resource=spec.name,
            )
        return lane

    async def _fitting(self, spec: InstanceSpec) -> Tier:
        """Return PROCESS for an app object and for what the source does not tell, else SHARED.

        An unmodified app reads the process's environment when it is imported: it must not be imported here.
        """
        kind = await asyncio.to_thread(self._loader.kind_of, spec.entrypoint)
        if kind == "factory" or not self.has(InstanceSpec.PROCESS):
            return InstanceSpec.SHARED
        return InstanceSpec.PROCESS
