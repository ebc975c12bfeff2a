"""From an entrypoint to an app that answers requests: importing, telling what it is, building it."""

from runtime_node.loader.code import LoadedCode
from runtime_node.loader.entrypoint import Entrypoint, parse_entrypoint
from runtime_node.loader.loader import Loader

__all__ = ["Entrypoint", "LoadedCode", "Loader", "parse_entrypoint"]
