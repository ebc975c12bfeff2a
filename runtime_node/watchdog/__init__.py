"""Watches the node's event loops and its interpreter from outside, and breaks off what blocks them."""

from runtime_node.watchdog.block import Block, Stage
from runtime_node.watchdog.switching import Switching
from runtime_node.watchdog.watchdog import BlockPolicy, Watchdog

__all__ = ["Block", "BlockPolicy", "Stage", "Switching", "Watchdog"]
