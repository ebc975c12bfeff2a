"""A package of which two editions are vendored, one in each app-dir."""

from importlib.metadata import version

from tinytext.core import shout

__version__ = version("tinytext")
__all__ = ["shout"]
