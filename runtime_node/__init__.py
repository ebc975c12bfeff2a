"""The runtime node: hosts many app instances in one process group and reports what they do."""

__version__ = "0.1.0"
