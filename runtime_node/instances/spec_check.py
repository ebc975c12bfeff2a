"""Checks the specs of instances: of thousands that run the same only what is each one's own.

What a spec says of what runs is checked once for all that say the same, by `runtime_node.rules`.
"""

from __future__ import annotations

import hashlib

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node import rules

MOST = 1_024
"""Different ones that are remembered."""

_OWN = (
    "name", "app_uid", "generation", "epoch", "requires_existing_data", "database_url", "database_pool_size",
)  # fmt: skip
"""Fields of which each instance has its own."""


class SpecCheck:
    """Remembers what was found sound, by its digest: it may hold secrets. Belongs to the control loop."""

    def __init__(self) -> None:
        self._sound: set[bytes] = set()
        self.whole = 0
        """Specs that were checked from end to end."""

    def check(self, spec: InstanceSpec) -> None:
        """Raise INVALID_FIELD with every field of the spec that breaks its rule."""
        digest = _digest(spec)
        if digest in self._sound:
            rules.check_own_fields(spec)
            return
        self.whole += 1
        rules.check_spec(spec)
        if len(self._sound) >= MOST:
            self._sound.clear()
        self._sound.add(digest)


def _digest(spec: InstanceSpec) -> bytes:
    """Return a digest of what a spec says beside its instance's own."""
    rest = InstanceSpec()
    rest.CopyFrom(spec)
    for field in _OWN:
        rest.ClearField(field)  # type: ignore[arg-type]
    return hashlib.sha256(rest.SerializeToString(deterministic=True)).digest()
