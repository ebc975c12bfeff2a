"""Shows what an app has raised. That runs code of the app's, which may raise anything, SystemExit too, or
return no text: nothing of it leaves here, and what is returned can be written as UTF-8.
"""

from __future__ import annotations

import traceback

LONGEST = 64 * 1024
"""Characters kept of a message, and of either end of a traceback: what is shown of them is less."""
_NOT_SHOWN = "<its message cannot be shown>"
_CUT = "\n  […]\n"


def type_name(fault: BaseException) -> str:
    """Return the name of an exception's class, not as its class would have it."""
    name: str = type.__getattribute__(type(fault), "__name__")
    return encodable(name)


def message_of(fault: BaseException) -> str:
    """Return an exception's text, or that it has none to show."""
    try:
        text = str(fault)
        return encodable(text[:LONGEST])
    except BaseException:  # noqa: BLE001 - of the app's
        return _NOT_SHOWN


def traceback_of(fault: BaseException) -> str:
    """Return an exception's traceback, cut from its middle, or its name where there is none to show."""
    try:
        return cut("".join(traceback.format_exception(fault)))
    except BaseException:  # noqa: BLE001 - of the app's
        return f"{type_name(fault)}: {_NOT_SHOWN}\n"


def cut(text: str) -> str:
    """Return a text without its middle, if it is long, and without what UTF-8 does not have."""
    if len(text) > 2 * LONGEST:
        text = text[:LONGEST] + _CUT + text[-LONGEST:]
    return encodable(text)


def encodable(text: str) -> str:
    """Return a text with each lone surrogate written as an escape."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
