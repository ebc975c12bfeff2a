"""ExplainPlacement: where an app would go now, and of each node why or why not, by placement's own rules."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1 import fleet_pb2 as pb
from services.control_plane.catalog.candidates import neighbours_of
from services.control_plane.catalog.changes import app_not_found, defaults_of
from services.control_plane.fleet.views import environment_not_found
from services.control_plane.operations.moves import bound_by
from services.control_plane.placement.choice import (
    Candidate,
    Candidates,
    Spread,
    Wish,
    choose,
    obstacles,
    ranked,
    wish_of,
)
from services.control_plane.placement.scale import wanted_replicas
from services.control_plane.rules.app_defaults import normalize_app
from services.control_plane.rules.app_rules import app_violations
from services.control_plane.rules.environment_defaults import with_defaults
from services.control_plane.rules.names import DEFAULT_ENVIRONMENT, app_name, parse_app_name
from services.control_plane.rules.sizes import check_sizes
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import Role
from services.rpc.errors import invalid_field, invalid_fields

MOST = 1_000
"""Nodes that an answer tells of."""

Response = pb.ExplainPlacementResponse


def explain_placement(mirror: Mirror, request: pb.ExplainPlacementRequest) -> Response:
    """Carry out ExplainPlacement."""
    if request.app and request.HasField("app_spec"):
        raise invalid_field("app_spec", "must not be set with app")
    if not request.app and not request.HasField("app_spec"):
        raise invalid_field("app", "must be set, or app_spec instead of it")
    response = Response()
    name = ""
    if request.app:
        name = app_name(parse_app_name(request.app, "app"))
        record = mirror.apps.get(name)
        if record is None:
            raise app_not_found(name)
        spec = record.spec
        placements = mirror.placements_of(name)
        staying = {it.node for it in placements if it.role in (Role.CURRENT, Role.INCOMING)}
        response.current_nodes.extend(sorted(staying))
        prefix = f"{spec.environment}/nodes/"
        known = [it for it in mirror.nodes.values(prefix) if it.name.startswith(prefix)]
        bound = bound_by(record, placements, known)
        response.bound_reason = bound.reason if bound is not None else ""
    else:
        spec = _checked(mirror, request.app_spec)
    environment = mirror.environments.get(spec.environment)
    if environment is None:
        raise environment_not_found(spec.environment)
    # Of an app with many copies the next one is explained, of one with a single copy that one itself.
    app = mirror.apps.get(name) if name else None
    siblings = response.current_nodes if app is not None and wanted_replicas(app) > 1 else ()
    wish = wish_of(spec, environment_cordoned=environment.environment.cordoned, siblings=siblings)
    nodes = _candidates(mirror, spec, name)
    choice = choose(wish, nodes)
    response.node, response.message = choice.node, choice.reason
    response.verdicts.extend(_verdicts(wish, nodes))
    return response


LOOKED_AT = ("environment", "node_selector", "limits", "exclusive", "labels", "anti_affinity")
"""Fields of an app that placement looks at."""


def _checked(mirror: Mirror, app: App) -> App:
    """Return a spec in full form, as it would be created, checked where placement looks at it."""
    check_sizes(app, "app_spec")
    environment = mirror.environments.get(app.environment or DEFAULT_ENVIRONMENT)
    spec = normalize_app(with_defaults(app, defaults_of(environment)))
    looked_at = tuple(f"app_spec.{field}" for field in LOOKED_AT)
    wrong = [it for it in app_violations(spec, "app_spec") if it.field.startswith(looked_at)]
    if wrong:
        raise invalid_fields(wrong)
    return spec


def _candidates(mirror: Mirror, spec: App, app: str) -> list[Candidate]:
    """Return the nodes as they were if the app were on none: it takes no room from itself."""
    prefix = f"{spec.environment}/nodes/"
    records = takewhile(lambda it: it.name.startswith(prefix), mirror.nodes.values(prefix))
    nodes = ((it.name, it.node, it.node.state == pb.Node.READY) for it in records)
    homes = {it.node for it in mirror.placements_of(app)} if app else set()
    found = Candidates().of(nodes, mirror.loads, neighbours_of(mirror, spec, app), dict.fromkeys(homes, -1))
    own = spec.limits.memory_bytes
    return [it._replace(reserved_bytes=it.reserved_bytes - own) if it.name in homes else it for it in found]


def _verdicts(wish: Wish, nodes: Sequence[Candidate]) -> list[Response.Verdict]:
    fit = ranked(wish, nodes)
    rank = {node.name: place for place, node in enumerate(fit, start=1)}
    rest = (node for node in nodes if node.name not in rank)
    spread = Spread(wish, nodes)
    return [_verdict(wish, node, rank.get(node.name, 0), spread) for node in [*fit, *rest][:MOST]]


def _verdict(wish: Wish, node: Candidate, rank: int, spread: Spread) -> Response.Verdict:
    return Response.Verdict(
        node=node.name,
        eligible=rank > 0,
        rank=rank,
        app_count=node.apps,
        zone=node.zone,
        copy_count=spread.on(node),
        zone_copy_count=spread.in_zone(node),
        obstacles=[
            Response.Obstacle(reason=it.reason, message=it.message, remedy=it.remedy)
            for it in obstacles(wish, node)
        ],
    )
