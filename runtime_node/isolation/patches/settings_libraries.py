"""pydantic-settings where apps share a process: it would find defaults for what an app is given as `env`.

It reads the environment as a whole, so no look-up of a variable tells that it is looked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime_node.isolation import environ


class _Environment(dict[str, Any]):
    """The variables that were found. A look for one that is withheld is refused, however it is spelt."""

    def __init__(self, found: Mapping[str, Any], withheld: Mapping[str, str]) -> None:
        super().__init__(found)
        self._withheld = {key.lower(): (key, instead) for key, instead in withheld.items()}

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self and key.lower() in self._withheld:
            raise environ.refuse(*self._withheld[key.lower()])
        return super().get(key, default)


def tell_what_is_withheld(module: Any) -> None:
    """Patch `pydantic_settings.sources.providers.env`."""
    source = getattr(module, "EnvSettingsSource", None)
    load = getattr(source, "_load_env_vars", None)
    if source is None or load is None:
        return

    def load_variables(self: Any) -> Mapping[str, Any]:
        found: Mapping[str, Any] = load(self)
        withheld = environ.withheld()
        return _Environment(found, withheld) if withheld else found

    source._load_env_vars = load_variables
