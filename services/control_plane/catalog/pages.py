"""One page of a feed in the order of names: what every list method but an ordered one needs.

A page has as many elements as asked for, or as many as one message takes (AIP-158).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TypeVar

from services.control_plane.rules.paging import decode_page_token, encode_page_token, page_size

T = TypeVar("T")

MAX_PAGE_BYTES = 2 * 1024 * 1024
"""A page ends early beyond this: clients take messages of 4 MiB, and one app may have a tenth of that."""


def request_digest(*fields: str) -> str:
    """Return a digest of the request fields that must stay as they were from page to page."""
    return hashlib.blake2b("\0".join(fields).encode(), digest_size=8).hexdigest()


def fitting(elements: Sequence[T], bytes_of: Callable[[T], int]) -> int:
    """Return how many of the elements one message takes, at least one of them."""
    if sum(map(bytes_of, elements)) <= MAX_PAGE_BYTES:
        return len(elements)
    room = MAX_PAGE_BYTES
    for count, element in enumerate(elements):
        if room < 0:
            return count
        room -= bytes_of(element)
    return len(elements)


def page_by_name(
    values: Callable[[str], Iterable[T]],
    name_of: Callable[[T], str],
    bytes_of: Callable[[T], int],
    *,
    size: int,
    token: str,
    digest: str,
) -> tuple[list[T], str]:
    """Return a page of what `values(after_name)` yields in order, and the token of the next one.

    Raises SupervisorError INVALID_FIELD for a negative size, INVALID_PAGE_TOKEN.
    """
    count, after = page_start(size, token, digest)
    return page_end(list(islice(values(after), count + 1)), count, name_of, bytes_of, digest)


def page_start(size: int, token: str, digest: str) -> tuple[int, str]:
    """Return how many elements a page may have, and the name after which it begins.

    Raises SupervisorError INVALID_FIELD for a negative size, INVALID_PAGE_TOKEN.
    """
    return page_size(size), str(decode_page_token(token, digest)[0]) if token else ""


def page_end(
    found: list[T], count: int, name_of: Callable[[T], str], bytes_of: Callable[[T], int], digest: str
) -> tuple[list[T], str]:
    """Return the page of what was found, `count` elements or one more, and the token of the next one."""
    count = fitting(found[:count], bytes_of)
    if len(found) <= count:
        return found, ""
    return found[:count], encode_page_token((name_of(found[count - 1]),), digest)
