"""The grammar of an entrypoint, `package.module:attribute[.attribute]`. Knows nothing of modules."""

from __future__ import annotations

import keyword
from dataclasses import dataclass

from services.rpc.errors import SupervisorError

MAX_LENGTH = 256
_GRAMMAR = "package.module:attribute[.attribute]"


@dataclass(frozen=True, slots=True)
class Entrypoint:
    """A parsed entrypoint: the dotted name of a module and the path of attributes inside it."""

    module: str
    attributes: tuple[str, ...]

    @property
    def top(self) -> str:
        """The module's top-level package."""
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.module}:{'.'.join(self.attributes)}"


def parse_entrypoint(text: str) -> Entrypoint:
    """Parse `package.module:attribute[.attribute]`, at most 256 characters.

    Raises SupervisorError `ENTRYPOINT_MALFORMED` with a sentence that says which part is wrong.
    """
    if len(text) > MAX_LENGTH:
        raise _malformed(text[:40] + "…", f"it is longer than {MAX_LENGTH} characters")
    module, colon, attributes = text.partition(":")
    if not colon:
        raise _malformed(text, "the colon between module and attribute is missing")
    if not module:
        raise _malformed(text, "there is no module before the colon")
    if not attributes:
        raise _malformed(text, "there is no attribute after the colon")
    for part in module.split("."):
        _check_name(text, part, "module")
    for part in attributes.split("."):
        _check_name(text, part, "attribute")
    return Entrypoint(module, tuple(attributes.split(".")))


def _check_name(text: str, part: str, what: str) -> None:
    if not part:
        raise _malformed(text, f"a part of the {what}'s name is empty")
    if not part.isidentifier():
        raise _malformed(text, f"{part!r} cannot be the name of a {what}")
    if keyword.iskeyword(part):
        raise _malformed(text, f"{part!r} is a keyword of Python")


def _malformed(text: str, why: str) -> SupervisorError:
    return SupervisorError(
        "ENTRYPOINT_MALFORMED", f"entrypoint {text!r} is not of the form {_GRAMMAR}: {why}"
    )
