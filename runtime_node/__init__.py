"""The runtime node: hosts many app instances in one process group and reports what they do."""
