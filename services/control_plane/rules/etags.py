"""Entity tags: made from what a resource's version is, compared as RFC 9110 compares weakly."""

from __future__ import annotations

import hashlib

from services.rpc.errors import SupervisorError


def make_etag(*parts: str | int) -> str:
    """Return the strong, quoted etag of the version that `parts` identify."""
    text = "\n".join(str(part) for part in parts)
    return f'"{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}"'


def app_etag(uid: str, generation: int) -> str:
    """Return the etag of one generation of an app."""
    return make_etag("app", uid, generation)


def etag_matches(given: str, current: str) -> bool:
    """Tell whether a caller's etag names the current version; an empty one asks for no check.

    Takes the quoted form, the weak form `W/"…"` and the bare value: shells and languages lose the quotes.
    """
    return not given or _opaque(given) == _opaque(current)


def check_etag(given: str, current: str, resource: str) -> None:
    """Raise ETAG_MISMATCH unless `given` is empty or names the current version of `resource`."""
    if not etag_matches(given, current):
        raise SupervisorError(
            "ETAG_MISMATCH",
            f"{resource} has changed since that etag; read it again and repeat the change on what you read.",
            resource=resource,
        )


def _opaque(etag: str) -> str:
    return etag.strip().removeprefix("W/").strip('"')
