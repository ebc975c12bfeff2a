"""Which of an app's replicas stay where there are too many, and when there is to be one more. Pure.

Beside an app's only replica a new version is tried in one more, for as long as its trial goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.control_plane.placement import canary
from services.control_plane.placement.scale import wanted_replicas
from services.control_plane.store.records import AppRecord, PlacementRecord


@dataclass(frozen=True, slots=True)
class Seat:
    """What is found of a replica."""

    number: int
    current: PlacementRecord | None
    """What serves, or did last."""
    is_there: bool
    """That is of the version that is wanted."""
    is_coming: bool
    """What comes in is of the version that is wanted."""
    serves: bool
    is_known: bool
    """Its node is heard; or nothing of it serves yet."""

    @property
    def is_wanted(self) -> bool:
        """Whether it runs the version that is wanted, or is to."""
        return self.is_there or self.is_coming


def has_one_more(app: AppRecord, seats: Sequence[Seat], *, given_up: bool) -> bool:
    """Tell whether a replica is to be beside the only one, for a version that is on trial or `given_up`."""
    stable = stable_seat(app, seats)
    if wanted_replicas(app) > 1 or stable is None or stable.current is None:
        return False
    others = [it for it in seats if it is not stable]
    if given_up:
        # It serves until that does to which the app goes back; for as long it can be replaced where it is.
        return not stable.serves and any(it.serves and it.is_there for it in others)
    if app.spec.rollout.paused:
        return canary.has_begun(app) and any(it.is_wanted for it in others)  # neither goes
    if not canary.is_tried(app, stable.current):
        return False
    # Where nothing serves there is nothing to try it against.
    return bool(others) or stable.serves or not stable.is_known


def stable_seat(app: AppRecord, seats: Sequence[Seat]) -> Seat | None:
    """Return the replica that runs what is to be gone back to, the best of several; None without one."""
    proven = canary.unproven_against(app)
    old = [it for it in seats if it.current is not None and not it.is_there]
    return min(
        old,
        key=lambda it: (
            it.current is not None and it.current.generation != proven,
            not it.serves,
            it.is_coming,
            it.number,
        ),
        default=None,
    )


def best_first(app: AppRecord, seats: Sequence[Seat], count: int, *, given_up: bool) -> list[Seat]:
    """Return the replicas, those that are to stay before others: as many are kept as there are to be.

    Those that serve come first, then those with the lowest numbers. What is on trial stays, as far as its
    share goes, and of what it is measured against some; what was given up goes first.
    """
    best = sorted(seats, key=lambda it: (not it.serves, it.number))
    stable = stable_seat(app, seats)
    if stable is None or stable.current is None:
        return best
    rest = [it for it in best if it is not stable]
    if given_up:
        return [stable, *rest] if count == 1 else best
    if not canary.is_tried(app, stable.current):
        proven = count == 1 and canary.has_begun(app)
        return sorted(best, key=lambda it: (not it.serves, not it.is_there)) if proven else best
    if count == 1:
        return sorted(best, key=lambda it: (not it.serves, it is not stable))
    trying = [it for it in rest if it.is_wanted]
    share = canary.tried_replicas(app, count)
    first = [stable, *trying[:share]]
    unproven = [it for it in rest if it.current is not None and _is_unproven(app, it.current)]
    first += [it for it in unproven if it not in first][: max(0, share - len(trying))]
    return [*first, *(it for it in rest if it not in first and it not in trying), *trying[share:]]


def _is_unproven(app: AppRecord, placement: PlacementRecord) -> bool:
    stable = canary.unproven_against(app)
    return bool(stable) and placement.generation != stable
