"""The HTTP front of a node: listener, routing, and one gate per instance."""

from runtime_node.http.current import CURRENT_INSTANCE, RequestInterrupted
from runtime_node.http.figures import GateFigures
from runtime_node.http.front import FrontFigures, HttpFront
from runtime_node.http.gate import Gate
from runtime_node.http.limits import FrontLimits, GateLimits
from runtime_node.http.router import Router

__all__ = [
    "CURRENT_INSTANCE",
    "FrontFigures",
    "FrontLimits",
    "Gate",
    "GateFigures",
    "GateLimits",
    "HttpFront",
    "RequestInterrupted",
    "Router",
]
