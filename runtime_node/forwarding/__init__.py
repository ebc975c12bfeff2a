"""Carries requests for an app that has moved to the node that has it; stands at a gate as an app does."""

from runtime_node.forwarding.carrier import Carrier
from runtime_node.forwarding.forwarder import Forwarder, ForwardGate
from runtime_node.forwarding.target import Target, parse_target

__all__ = ["Carrier", "ForwardGate", "Forwarder", "Target", "parse_target"]
