"""Keeps an app's cookies its own: a `Domain` that covers the base domain would reach every other app."""

from __future__ import annotations

from runtime_node.http.authority import normal_domain


def without_shared_domain(cookie: bytes, base_domain: str) -> bytes:
    """Return a Set-Cookie without the `Domain` attributes that cover `base_domain` (RFC 6265 §5.2.3).

    Returns the very object it was given where there is none.
    """
    if b"domain" not in cookie.lower():
        return cookie
    first, *attributes = cookie.split(b";")
    kept = [attribute for attribute in attributes if not _covers(attribute, base_domain)]
    return cookie if len(kept) == len(attributes) else b";".join((first, *kept))


def _covers(attribute: bytes, base_domain: str) -> bool:
    name, _, value = attribute.partition(b"=")
    if name.strip().lower() != b"domain":
        return False
    # A dot before it is ignored by browsers, one behind it by some.
    text = value.strip().strip(b'"').decode("utf-8", "replace").strip(".")
    try:
        domain = normal_domain(text)
    except ValueError:
        return False
    return base_domain == domain or base_domain.endswith("." + domain)
