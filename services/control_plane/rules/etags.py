"""Entity tags: which version of a resource a caller has seen (AIP-154)."""

from __future__ import annotations

from services.rpc.errors import SupervisorError


def app_etag(uid: str, generation: int, history: str = "") -> str:
    """Return the etag of one generation of an app: strong, and quoted as RFC 9110 has it.

    The uid is part of it so that an app which was deleted and created again is told apart; the history of
    the catalog, so that a generation is which was given again after the catalog was restored from a backup.
    """
    return f'"{uid[:8]}-{generation}-{history}"' if history else f'"{uid[:8]}-{generation}"'


def etag_matches(given: str, current: str) -> bool:
    """Tell whether a caller's etag names the current version; an empty one asks for no check.

    Takes the quoted form, the weak form `W/"…"` and the bare value: shells and languages lose the quotes.
    """
    return not given or _opaque(given) == _opaque(current)


def check_etag(given: str, current: str, name: str) -> None:
    """Raise SupervisorError ETAG_MISMATCH unless `given` is empty or the current one of the resource."""
    if not etag_matches(given, current):
        raise SupervisorError(
            "ETAG_MISMATCH",
            f"{name} has changed since etag {given}; read it again.",
            resource=name,
            metadata={"etag": current, "given_etag": given},
        )


def _opaque(etag: str) -> str:
    return etag.strip().removeprefix("W/").strip('"')
