"""Which share of an app's requests goes to a version on trial: by weight, a header, a client's cookie. Pure.

What is on trial, and what becomes of it, is the control plane's to say (`App.canary`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from appsupervisor.catalog.v1.app_catalog_pb2 import App, Canary


@dataclass(frozen=True, slots=True)
class Share:
    """The part of an app's requests that goes to other nodes than the rest."""

    nodes: tuple[str, ...]
    """Names of nodes, sorted."""
    weight: int
    """So many of 100."""
    header: tuple[str, str] | None = None
    """Name and value: what has it is of the share in any case."""
    sticky: str = ""
    """The cookie by which a client stays with its version: its name and what its value begins with."""

    @property
    def name(self) -> str:
        """What tells it from other shares."""
        parts = ["+".join(self.nodes), f"{self.weight}%"]
        if self.header is not None:
            parts.append("=".join(self.header))
        return "~".join([*parts, *([self.sticky] if self.sticky else [])])


def split(app: App, nodes: tuple[str, ...]) -> tuple[tuple[str, ...], Share | None]:
    """Return which of the nodes that may be asked most of an app's requests go to, and the others' share.

    A version that was given up is asked only where there is no other.
    """
    state = app.canary.state
    if state not in (Canary.ANALYZING, Canary.REVERTED):
        return nodes, None
    stable = tuple(node for node in nodes if node not in app.canary.nodes)
    new = tuple(node for node in nodes if node in app.canary.nodes)
    if not stable or not new:
        return nodes, None
    policy = app.rollout.canary
    header = (policy.header.name, policy.header.value) if policy.HasField("header") else None
    if state == Canary.REVERTED or not (policy.weight_percent or header):
        return stable, None
    sticky = ""
    if policy.sticky and policy.weight_percent:
        # Apps may share a host, and what was said of an earlier version tells nothing of this one.
        sticky = f"canary-{app.name.removeprefix('apps/')}={app.canary.generation}.{app.canary.epoch}"
    return stable, Share(new, policy.weight_percent, header, sticky)


def announced(app: App, nodes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the nodes on which a version is to be tried that are not among those that may be asked yet."""
    waits = app.canary.state == Canary.ANALYZING and app.rollout.HasField("canary")
    return tuple(node for node in app.canary.nodes if node not in nodes) if waits else ()


def with_share(rules: Iterable[dict[str, Any]], share: Share, cluster: str) -> list[dict[str, Any]]:
    """Return an app's routes, in JSON form, with the share of the requests going to a cluster of its own."""
    rules = list(rules)
    found = []
    if share.header is not None:
        name, value = share.header
        found += _where({"name": name, "string_match": {"exact": value}}, rules, cluster)
    if share.sticky:
        found += _where(_has_cookie(f"{share.sticky}-new"), rules, cluster)
        found += _where(_has_cookie(f"{share.sticky}-old"), rules)
    for rule in rules:
        route = dict(rule["route"])
        if share.weight:
            parts = [(cluster, share.weight, "new"), (route.pop("cluster"), 100 - share.weight, "old")]
            route["weighted_clusters"] = {
                "clusters": [
                    {
                        "name": name,
                        "weight": weight,
                        **(_sets_cookie(f"{share.sticky}-{which}") if share.sticky else {}),
                    }
                    for name, weight, which in parts
                ]
            }
        found.append({**rule, "route": route})
    return found


def _where(
    condition: dict[str, Any], rules: Iterable[dict[str, Any]], cluster: str = ""
) -> list[dict[str, Any]]:
    """Return the rules for requests of which a header fulfils a condition, to a cluster if one is named."""
    return [
        {
            **rule,
            "match": {**rule["match"], "headers": [*rule["match"].get("headers", ()), condition]},
            "route": {**rule["route"], "cluster": cluster or rule["route"]["cluster"]},
        }
        for rule in rules
    ]


def _has_cookie(pair: str) -> dict[str, Any]:
    return {
        "name": "cookie",
        "string_match": {"safe_regex": {"regex": f"(?:.*; ?)?{re.escape(pair)}(?:;.*)?"}},
    }


def _sets_cookie(pair: str) -> dict[str, Any]:
    # Without an age: it ends with the client's session.
    header = {"key": "set-cookie", "value": f"{pair}; Path=/; HttpOnly; SameSite=Lax"}
    return {"response_headers_to_add": [{"header": header, "append_action": "APPEND_IF_EXISTS_OR_ADD"}]}
