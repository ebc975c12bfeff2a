"""The version of both programs, and how far two of them may be apart. Pure."""

from __future__ import annotations

import re

VERSION = "0.1.0"

MOST_APART = 1
"""Minor versions by which a node and its control plane may differ, in either direction."""

_NUMBERS = re.compile(r"(\d{1,6})\.(\d{1,6})(?:[.+-].*)?")


def is_too_far(theirs: str, own: str = VERSION) -> bool:
    """Tell whether two versions are too far apart to work together; not of one that has no numbers."""
    found = [_NUMBERS.fullmatch(version) for version in (theirs, own)]
    if None in found:
        return False  # a build of somebody's own
    (major, minor), (own_major, own_minor) = ((int(it[1]), int(it[2])) for it in found if it is not None)
    return major != own_major or abs(minor - own_minor) > MOST_APART
