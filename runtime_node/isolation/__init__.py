"""Keeps what one instance does in a shared process away from the others, and undoes it at its stop."""

from runtime_node.isolation.current import CURRENT_INSTANCE, running_as
from runtime_node.isolation.endings import tasks_of
from runtime_node.isolation.gc_policy import GCPolicy
from runtime_node.isolation.loop_settings import keep_settings_apart
from runtime_node.isolation.patches import install
from runtime_node.isolation.refusals import guard_loop
from runtime_node.isolation.threads import attach

__all__ = [
    "CURRENT_INSTANCE",
    "GCPolicy",
    "attach",
    "guard_loop",
    "install",
    "keep_settings_apart",
    "running_as",
    "tasks_of",
]
