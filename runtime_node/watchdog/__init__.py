"""Watches the node's event loops and its interpreter from outside, and breaks off what blocks them."""

from runtime_node.watchdog.block import Block, Stage
from runtime_node.watchdog.watchdog import Terms, Watchdog

__all__ = ["Block", "Stage", "Terms", "Watchdog"]
