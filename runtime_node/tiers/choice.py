"""Which tier an instance starts in: the tier it asks for, or the one that fits its code."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypeAlias

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.loader import Loader
from runtime_node.loader.code_files import CodeState
from runtime_node.loader.static import Kind
from runtime_node.tiers.reach import reaches
from runtime_node.tiers.runner import AppRunner
from services.rpc.errors import SupervisorError

Tier: TypeAlias = InstanceSpec.IsolationTier.ValueType

MOST_KNOWN = 256
"""Codes of which it is remembered what their source tells."""


class Runners:
    """The tiers of this node, by tier."""

    def __init__(self, runners: Mapping[Tier, AppRunner], loader: Loader) -> None:
        self._runners = runners
        self._loader = loader
        self._told: dict[tuple[str, str], tuple[Kind | None, bool]] = {}
        """By entrypoint and digest of its code: what it names, and whether that needs a process."""

    def has(self, tier: Tier) -> bool:
        """Return whether this node has a tier of that tier."""
        return tier in self._runners

    async def choose(self, spec: InstanceSpec, floor: Tier, code: CodeState | None = None) -> AppRunner:
        """Return the tier for an instance: never looser than `floor`, which a demotion has set.

        `code` is what was on disk for it a moment ago, if that is known.

        Raises SupervisorError ENTRYPOINT_MALFORMED, and ISOLATION_UNSUPPORTED for a tier that is not here.
        """
        tier = max(spec.isolation or await self._fitting(spec, code), floor)
        runner = self._runners.get(tier)
        if runner is None:
            raise SupervisorError(
                "ISOLATION_UNSUPPORTED",
                f"This node has no {InstanceSpec.IsolationTier.Name(tier)} tier.",
                resource=spec.name,
            )
        return runner

    def stricter(self, spec: InstanceSpec, tier: Tier, refused: SupervisorError) -> AppRunner | None:
        """Return what to try next for an instance that asks for no tier and was refused in `tier`, if any."""
        chosen_here = not spec.isolation and tier < InstanceSpec.PROCESS
        if not chosen_here or refused.reason != "ISOLATION_UNSUPPORTED":
            return None
        return self._runners.get(InstanceSpec.PROCESS)

    async def _fitting(self, spec: InstanceSpec, code: CodeState | None) -> Tier:
        """Return PROCESS for what cannot share a process, and for what the source does not tell, else SHARED.

        An unmodified app reads the process's environment when it is imported: it must not be imported here.
        """
        if not self.has(InstanceSpec.PROCESS):
            return InstanceSpec.SHARED
        kind, alone = await self._read(spec.entrypoint, code)
        if kind is None or not reaches(spec, kind) or alone:
            return InstanceSpec.PROCESS
        return InstanceSpec.SHARED

    async def _read(self, entrypoint: str, code: CodeState | None) -> tuple[Kind | None, bool]:
        """Return what the source tells, read once for each state of all of it."""
        whole = code is not None and not code.partial
        key = (entrypoint, code.digest if code is not None else "")
        if whole and (known := self._told.get(key)) is not None:
            return known
        told = await asyncio.to_thread(self._look, entrypoint)
        if whole:
            if len(self._told) >= MOST_KNOWN:
                self._told.clear()
            self._told[key] = told
        return told

    def _look(self, entrypoint: str) -> tuple[Kind | None, bool]:
        kind = self._loader.kind_of(entrypoint)
        return kind, kind is not None and bool(self._loader.needs_process(entrypoint))
