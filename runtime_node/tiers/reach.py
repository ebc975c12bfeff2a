"""Which of an app's settings reach its code where it shares a process: those it is handed as its context.

An app object takes no context, and there is one environment per process. What does not reach is refused, for
an app that misses it would fall back, in silence, to a default of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.loader.static import Kind

_WAY_OUT = (
    "run it with isolation PROCESS, where they are its environment, or name a factory create_app(context)"
)


def reaches(spec: InstanceSpec, kind: Kind) -> bool:
    """Tell whether all that a spec gives reaches code of this kind in a shared process."""
    return kind == "factory" or (kind == "bare factory" and not (spec.env or spec.secret_env))


def refusal_of(spec: InstanceSpec, kind: Kind) -> str | None:
    """Return why code of this kind cannot share a process, in a sentence, if it cannot."""
    if reaches(spec, kind):
        return None
    if kind == "app":
        return (
            f"{spec.entrypoint} names an app object, which takes no context: its env, secret_env and database"
            f" cannot reach it in a shared process; {_WAY_OUT}"
        )
    return (
        f"the factory {spec.entrypoint} takes no context: its env and secret_env cannot reach it in a shared"
        f" process; {_WAY_OUT}"
    )


def instead_of_environment(spec: InstanceSpec, kind: Kind) -> Mapping[str, str]:
    """Return, for each variable that the app would have in a process of its own, what it reads here."""
    instead = {key: f"context.env[{key!r}]" for key in spec.env}
    instead |= {key: f"context.secrets[{key!r}]" for key in spec.secret_env}
    if kind == "bare factory" and spec.database.WhichOneof("kind") != "no_database":
        instead.setdefault("DATABASE_URL", "context.database_url")
    return instead
