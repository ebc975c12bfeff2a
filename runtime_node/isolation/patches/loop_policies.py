"""asyncio's policy per instance: one that an app sets makes the loops that the app itself asks for."""

from __future__ import annotations

import asyncio
from typing import Any

from runtime_node.isolation.current import acting_instance
from runtime_node.isolation.per_instance import PerInstance


def install() -> None:
    """Keep policies apart, for this process."""
    events: Any = asyncio.events
    get_for_all, set_for_all = events.get_event_loop_policy, events.set_event_loop_policy
    own: PerInstance[Any] = PerInstance("event loop policy")

    def get_event_loop_policy() -> Any:
        return own.here() or get_for_all()

    def set_event_loop_policy(policy: Any) -> None:
        instance = acting_instance()
        if not instance:
            set_for_all(policy)
        elif policy is None:
            own.drop(instance)
        elif not isinstance(policy, events.AbstractEventLoopPolicy):
            kind = type(policy).__name__
            raise TypeError(f"policy must be an AbstractEventLoopPolicy or None, not {kind!r}")
        else:
            own.put(instance, policy)

    for module in (asyncio, events):
        setattr(module, "get_event_loop_policy", get_event_loop_policy)  # noqa: B010
        setattr(module, "set_event_loop_policy", set_event_loop_policy)  # noqa: B010
