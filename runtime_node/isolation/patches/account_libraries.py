"""Clients of outside services with one account per process: one per instance, or refused where none can be.

An app that sets its key or its account for the whole process would have its neighbours use it.
"""

from __future__ import annotations

import contextlib
import copy
from types import ModuleType, SimpleNamespace
from typing import Any

from runtime_node.isolation.current import acting_instance
from runtime_node.isolation.library_state import Dispatch, LibraryState
from runtime_node.isolation.refusals import RefusedError

_FLUSH_SECONDS = 0.5

SETTINGS: dict[str, frozenset[str]] = {
    "stripe": frozenset({"api_key", "client_id", "default_http_client"}),
    "openai": frozenset(
        {"api_key", "organization", "project", "webhook_secret", "base_url", "azure_endpoint"}
    ),
    "resend": frozenset({"api_key"}),
}
"""By module: attributes that hold the account of whoever uses the module."""


def keep_sentry_apart(module: Any) -> None:
    """Patch `sentry_sdk.scope`: what an app initializes sends that app's events alone."""
    if not hasattr(module, "_global_scope") or not hasattr(module.Scope, "__copy__"):
        return
    for_all = module.Scope.get_global_scope()
    inherited_clients: dict[int, Any] = {}

    def begin(inherited: Any) -> Any:
        scope = copy.copy(inherited)
        inherited_clients[id(scope)] = scope.client
        return scope

    def end(scope: Any) -> None:
        if scope.client is not inherited_clients.pop(id(scope), None):
            # What it still has to send is the app's own affair; so is a service that does not answer.
            with contextlib.suppress(Exception):
                scope.client.close(timeout=_FLUSH_SECONDS)

    module._global_scope = Dispatch(LibraryState(for_all, begin, end))


def keep_celery_apart(module: Any) -> None:
    """Patch `celery._state`: `current_app`, and with it tasks that are shared, is the instance's own."""
    for_all = getattr(module, "_tls", None)
    if not hasattr(for_all, "current_app"):
        return

    def begin(inherited: Any) -> Any:
        return SimpleNamespace(current_app=inherited.current_app)

    module._tls = Dispatch(LibraryState(for_all, begin))


def keep_boto3_apart(module: Any) -> None:
    """Patch `boto3`: a default session that an app sets up, with its credentials, is its own."""
    set_for_all, get_for_all = module.setup_default_session, module._get_default_session
    states = LibraryState(
        SimpleNamespace(session=None), lambda inherited: SimpleNamespace(session=inherited.session)
    )

    def setup_default_session(**kwargs: Any) -> None:
        if acting_instance():
            states.here().session = module.Session(**kwargs)
        else:
            set_for_all(**kwargs)

    def get_default_session() -> Any:
        return states.here().session or get_for_all()

    module.setup_default_session, module._get_default_session = setup_default_session, get_default_session


class _Guarded(ModuleType):
    """A module whose account an app cannot set for all."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in SETTINGS.get(self.__name__, ()) and acting_instance():
            raise RefusedError(
                f"an app in a shared process cannot set {self.__name__}.{name}, which all apps would use;"
                " make a client of your own with it, or run this app with isolation PROCESS"
            )
        super().__setattr__(name, value)


def guard_settings(module: Any) -> None:
    """Patch a module of `SETTINGS`."""
    if type(module) is ModuleType:
        module.__class__ = _Guarded
