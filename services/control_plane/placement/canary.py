"""Tries a new version on a share of an app's requests first, and judges it by what comes of them. Pure.

Which replicas run it, and when the others follow, is decided in `replicas`; what nodes tell of requests is
brought by `controller/canaries`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

from appsupervisor.catalog.v1.app_catalog_pb2 import App, Canary, CanaryPolicy
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceFigures
from services.control_plane.placement.scale import wanted_replicas
from services.control_plane.placement.snapshot import Snapshot, is_ready
from services.control_plane.rules.sentences import sentences
from services.control_plane.store.records import AppRecord, PlacementRecord, Role, Version
from services.spec.scalars import seconds

LATENCIES_KEPT = 5
LATENCIES_NEEDED = 3
"""Looks with requests before latency is judged: one slow moment, as right after a start, is no verdict."""


# --- what a rollout asks ---


def is_tried(app: AppRecord, before: PlacementRecord) -> bool:
    """Tell whether the wanted version has to prove itself before it replaces `before` everywhere."""
    canary, target = app.status.canary, app.target
    if not app.spec.rollout.HasField("canary") or before.generation == target.generation:
        return False
    return canary.state != Canary.PROMOTED or canary.generation != target.generation


def tried_replicas(app: AppRecord, count: int) -> int:
    """Return how many of so many replicas try a new version: by its share, at least one."""
    return max(1, count * app.spec.rollout.canary.weight_percent // 100)


def unproven_against(app: AppRecord) -> int:
    """Return the generation that a version on trial, or given up, is to go back to; 0 without such a one."""
    canary = app.status.canary
    return canary.stable_generation if canary.state in (Canary.ANALYZING, Canary.REVERTED) else 0


def given_up(app: AppRecord) -> tuple[str, str] | None:
    """Return why the wanted version was judged not good enough: a reason and a sentence."""
    canary = app.status.canary
    if canary.state != Canary.REVERTED or not is_of(canary, app.target):
        return None
    return canary.reason, canary.message


def has_begun(app: AppRecord) -> bool:
    """Tell whether the wanted version is, or was, on trial, and was not given up."""
    canary = app.status.canary
    return canary.state in (Canary.ANALYZING, Canary.PROMOTED) and is_of(canary, app.target)


def is_of(canary: Canary, version: Version) -> bool:
    """Tell whether a canary is the trial of a version."""
    return (canary.generation, canary.epoch) == (version.generation, version.epoch)


def is_announced(canary: Canary) -> bool:
    """Tell whether a version is to be tried and was not ready yet."""
    return canary.state == Canary.ANALYZING and not canary.HasField("begin_time")


# --- how far it is ---


def observed(
    app: AppRecord,
    placements: Iterable[PlacementRecord],
    failure: tuple[str, str] | None,
    seen: Snapshot,
    now: int,
) -> Canary:
    """Return the app's canary as it is with these placements; `failure` is why it has just been given up."""
    known, target, placements = app.status.canary, app.target, tuple(placements)
    staying = [it for it in placements if it.role in (Role.CURRENT, Role.INCOMING)]
    old = [it for it in staying if it.role is Role.CURRENT and it.generation != target.generation]
    new = [it for it in staying if it.generation == target.generation]
    canary = Canary()
    canary.CopyFrom(known)
    is_on = known.state in (Canary.ANALYZING, Canary.REVERTED)
    if is_on and is_of(known, target):
        if old and known.stable_generation not in {it.generation for it in staying}:
            # What had proven itself was lost or taken away: all go back to what is left.
            canary.stable_generation = max(it.generation for it in old)
        if not old:
            _end(canary, Canary.PROMOTED, "", "Nothing of the version before is left.")
        elif app.failed == target and known.state == Canary.ANALYZING:
            reason, why = failure or ("APP_STARTUP_FAILED", "It did not serve.")
            _end(canary, Canary.REVERTED, reason, why)
        elif known.state == Canary.ANALYZING and not app.spec.rollout.HasField("canary"):
            _end(canary, Canary.PROMOTED, "", "rollout.canary was removed.")
    elif old and new and app.failed != target and is_tried(app, old[0]) and _is_beside(app, new, old):
        stable = known.stable_generation if is_on else 0
        if stable not in {it.generation for it in old}:
            stable = max(it.generation for it in old)
        canary = Canary(
            state=Canary.ANALYZING,
            generation=target.generation,
            epoch=target.epoch,
            stable_generation=stable,
        )
    elif known.state == Canary.ANALYZING:
        _end(canary, Canary.REVERTED, "OPERATION_SUPERSEDED", "Another version is wanted instead.")
    waits = canary.state == Canary.ANALYZING and not canary.HasField("begin_time")
    if waits and any(is_ready(_instance(it, seen)) for it in new):
        canary.begin_time.FromMicroseconds(now)
    unproven = {it.node for it in staying if _is_unproven(it, canary, target)}
    if canary.state == Canary.REVERTED and is_of(canary, target):
        # Until it has ended it is ready, and nobody is to ask it.
        ending = {
            it.node for it in placements if it.role is Role.OUTGOING and it.generation == target.generation
        }
        unproven |= ending - {it.node for it in staying}
    del canary.nodes[:]
    canary.nodes.extend(sorted(unproven))
    return canary


def _is_beside(app: AppRecord, new: Iterable[PlacementRecord], old: Iterable[PlacementRecord]) -> bool:
    """Tell whether something is left to go on serving: an only replica that is replaced is tried no more."""
    return wanted_replicas(app) > 1 or not {it.replica for it in new} <= {it.replica for it in old}


def _is_unproven(placement: PlacementRecord, canary: Canary, target: Version) -> bool:
    if canary.state not in (Canary.ANALYZING, Canary.REVERTED):
        return False
    if is_of(canary, target):
        return placement.generation != canary.stable_generation
    # It was given up, and something else is wanted since, which takes its place.
    return placement.generation == canary.generation != target.generation


def _end(canary: Canary, state: Canary.State.ValueType, reason: str, why: str) -> None:
    canary.state, canary.reason, canary.message = state, reason, why


def _instance(placement: PlacementRecord, seen: Snapshot) -> Instance | None:
    return seen.instance(placement) if seen.heard(placement.node) else None


# --- the verdict ---


@dataclass(slots=True)
class Counts:
    """Requests, and how many of them failed."""

    requests: int = 0
    errors: int = 0

    @property
    def ratio(self) -> float:
        """The share that failed; 0 without requests."""
        return self.errors / self.requests if self.requests else 0.0


@dataclass(slots=True)
class Trial:
    """What was seen of the requests to a version and to the one before it. Bounded by the app's instances."""

    version: Version
    from_start: bool = True
    """Whether it is seen since the version was started; else both are counted from the first look on."""
    new: Counts = field(default_factory=Counts)
    old: Counts = field(default_factory=Counts)
    slowest: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_KEPT))
    """The new version's p99 at the last looks with requests, in seconds."""
    _last: dict[str, tuple[int, int]] = field(default_factory=dict)
    _looked: bool = False

    def look(self, new: Mapping[str, InstanceFigures], old: Mapping[str, InstanceFigures]) -> None:
        """Take note of instances' figures, by name, as last told."""
        last: dict[str, tuple[int, int]] = {}
        for counts, figures in ((self.new, new), (self.old, old)):
            for name, told in figures.items():
                last[name] = now = (told.request_count, told.error_count)
                # All that a new one was ever asked counts; of others only what comes from now on.
                begun = counts is self.new and (self.from_start or self._looked)
                before = self._last.get(name, (0, 0) if begun else now)
                if now[0] < before[0]:
                    before = (0, 0)  # it was started again, and counts anew
                counts.requests += now[0] - before[0]
                counts.errors += max(0, now[1] - before[1])
                if counts is self.new and now[0] > before[0] and told.HasField("latency_p99"):
                    self.slowest.append(seconds(told.latency_p99))
        self._last = last
        self._looked = self._looked or bool(new)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a version on trial, and why: a reason where it is given up, and a sentence."""

    state: Canary.State.ValueType
    reason: str
    message: str


def judge(policy: CanaryPolicy, trial: Trial, elapsed: float) -> Verdict | None:
    """Return what becomes of a version that has been ready for so many seconds; None while that is open.

    It is given up as soon as it is certain that more fail than may, and promoted not before its time.
    """
    new, old = trial.new, trial.old
    told = f"{new.errors} of {new.requests} requests failed"
    if old.requests:
        told += f", of the version before {old.errors} of {old.requests}"
    allowed = policy.max_error_ratio + old.ratio
    if new.errors > allowed * max(new.requests, policy.min_request_count):
        more = f"{policy.max_error_ratio * 100:g} % more are allowed"
        return Verdict(Canary.REVERTED, "CANARY_FAILED", sentences(f"{told}; {more}"))
    if policy.HasField("max_latency_p99") and len(trial.slowest) >= LATENCIES_NEEDED:
        slow, limit = median(trial.slowest), seconds(policy.max_latency_p99)
        if slow > limit:
            why = f"The 99th percentile of its latency is {slow:.3g} s; {limit:g} s are allowed"
            return Verdict(Canary.REVERTED, "CANARY_FAILED", sentences(why))
    enough = new.requests >= policy.min_request_count
    if enough and elapsed >= seconds(policy.duration):
        return Verdict(Canary.PROMOTED, "", sentences(told))
    if elapsed >= seconds(policy.timeout):
        why = f"It got {new.requests} requests in {elapsed:.0f} s; {policy.min_request_count} are needed"
        return Verdict(Canary.REVERTED, "CANARY_NOT_PROVEN", sentences(why))
    return None


def of_versions(
    app: App, placements: Iterable[PlacementRecord], told: Mapping[str, InstanceFigures]
) -> tuple[dict[str, InstanceFigures], dict[str, InstanceFigures]]:
    """Return what is told of the instances on trial, and of those of the version before."""
    canary = app.canary
    new: dict[str, InstanceFigures] = {}
    old: dict[str, InstanceFigures] = {}
    for it in placements:
        if it.instance in told and it.role in (Role.CURRENT, Role.INCOMING):
            if it.generation == canary.generation:
                new[it.instance] = told[it.instance]
            elif it.generation == canary.stable_generation:
                old[it.instance] = told[it.instance]
    return new, old
