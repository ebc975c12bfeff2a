"""The replicas of an app that has several: how many, which are swapped when, and when all go back. Pure.

Each replica is a swap of its own. One after the other, or so many at a time, they come to what is wanted; the
next has its turn once the one before is ready and healthy, and if one fails all go back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.control_plane.placement import canary
from services.control_plane.placement.kept import Seat, best_first, has_one_more, stable_seat
from services.control_plane.placement.scale import Epochs, is_at, wanted_replicas
from services.control_plane.placement.snapshot import Snapshot, has_ended, is_ready
from services.control_plane.placement.swap import Swap, pinned
from services.control_plane.rules.sentences import sentences
from services.control_plane.store.records import AppRecord, PlacementRecord, Role, Version


class Replicas:
    """The decision on an app that has several replicas, or has had."""

    def __init__(
        self, app: AppRecord, placements: Sequence[PlacementRecord], seen: Snapshot, now: int
    ) -> None:
        self._app = app
        self._seen = seen
        self._now = now
        self._wanted = wanted_replicas(app)
        self.one_more = False
        """Whether a replica is beside the only one, for a version that is tried."""
        self._target = app.target
        self._epochs = Epochs.of(app, placements)
        self._known_epoch = self._epochs.newest
        self._swaps: dict[int, Swap] = {}
        for number in sorted({it.replica for it in placements}):
            self._open(number, [it for it in placements if it.replica == number])
        self._waits: list[str] = []
        """Why replicas can't be where they should, one sentence each."""
        self.failed = app.failed
        """The version that was given up in favour of the one before it."""
        self.failure: tuple[str, str] | None = None
        """Why it has just been given up: a reason and a sentence."""
        self.after = 0.0
        """There is more to decide after so many seconds; 0 if there isn't."""

    @property
    def placements(self) -> tuple[PlacementRecord, ...]:
        """The placements that the app is to have."""
        return tuple(it for swap in self._swaps.values() for it in swap.placements)

    @property
    def _count(self) -> int:
        return self._wanted + self.one_more

    @property
    def newest_epoch(self) -> int:
        """The newest epoch that was given to one of them."""
        # Not one that was for a replica which has found no node.
        return max([self._known_epoch, *(it.epoch for it in self.placements)])

    def decide(self) -> str:
        """Decide; return why not all that is wanted can be, or nothing."""
        for swap in self._swaps.values():
            self._note(swap.settle())
        for swap in self._swaps.values():
            if self._takes_over(swap):
                swap.promote()
        if self._app.deleting or self._app.spec.desired_state == App.STOPPED:
            if not self._app.deleting:
                self._keep()
            for swap in self._swaps.values():
                swap.end()
        else:
            self._go_on()
        for swap in self._swaps.values():
            swap.forget()
        waiting = len(self._waits)
        if self.one_more and waiting == 1 and any(self._serves(it) for it in self._swaps.values()):
            return f"The new version is tried beside the one that serves first. {self._waits[0]}"
        return f"{waiting} of {self._count} replicas: {self._waits[0]}" if waiting else ""

    def _open(self, number: int, placements: Sequence[PlacementRecord] = ()) -> Swap:
        self._swaps[number] = swap = Swap(
            self._app,
            placements,
            self._seen,
            self._now,
            replica=number,
            siblings=partial(self._nodes_besides, number),
            next_epoch=self._epochs.next,
        )
        return swap

    def _nodes_besides(self, number: int) -> set[str]:
        """Return the nodes that the other replicas are on."""
        others = (it for other, swap in self._swaps.items() if other != number for it in swap.placements)
        return {it.node for it in others if it.role is not Role.LOST}

    def _note(self, wait: str) -> None:
        if wait:
            self._waits.append(wait)

    # How many

    def _keep(self, *, adding: bool = False) -> list[Swap]:
        """Return the replicas that are to be; those beyond are dismissed, `adding` adds what lacks."""
        seats = [self._seat(number) for number, it in self._swaps.items() if it.current or it.incoming]
        given_up = self.failed == self._target or canary.given_up(self._app) is not None
        self.one_more = adding and has_one_more(self._app, seats, given_up=given_up)
        here = [it.number for it in best_first(self._app, seats, self._count, given_up=given_up)]
        for number in here[self._count :]:
            self._swaps[number].dismiss(f"The app is to have {self._count} of its replicas.")
        kept = sorted(here[: self._count])
        number = 0
        while adding and len(kept) < self._count:
            known = self._swaps.get(number)
            if known is None or not known.placements:
                self._open(number)
                kept.append(number)
            number += 1
        return [self._swaps[number] for number in kept]

    def _seat(self, number: int) -> Seat:
        swap = self._swaps[number]
        coming = is_at(swap.incoming, self._target)
        return Seat(
            number, swap.current, self._is_there(swap), coming, self._serves(swap), self._is_known(swap)
        )

    # Which version

    def _go_on(self) -> None:
        """Bring the replicas to the version that is wanted, or all back to the one before."""
        kept = self._keep(adding=True)
        for swap in kept:
            swap.keep_what_serves()
        # What served before and is not replaced yet: while there is some, there is a way back.
        old = [swap.current for swap in kept if swap.current and not self._is_there(swap)]
        if old and self.failed != self._target:
            self._give_up(kept)
            if self.one_more and self.failed == self._target:
                kept = self._keep(adding=True)  # what was tried beside the only one goes
        if self.failed != self._target or not old:
            self.failed = None
            self._go_forward(kept, old)
        else:
            self._go_back(kept, self._newest(old))

    def _give_up(self, kept: Iterable[Swap]) -> None:
        """Give the wanted version up if a replica of it has failed or is unhealthy, or it was judged so."""
        judged = canary.given_up(self._app)
        if judged is not None:
            self.failed = self._target
            self.failure = judged[0], sentences(judged[1], "The version before goes on serving")
            return
        for swap in kept:
            new = swap.current if self._is_there(swap) else swap.incoming
            instance = self._instance(new)
            if new is None or instance is None or not is_at(new, self._target) or not _is_bad(instance):
                continue
            self.failed = self._target
            error = instance.last_error
            probed = (it.message for it in instance.conditions if it.type == "ProbeFailing")
            unwell = sentences(f"{new.instance_id} was ready and is UNHEALTHY", next(probed, ""))
            unhealthy = ("APP_UNHEALTHY", unwell)
            ended = (error.reason or "APP_STARTUP_FAILED", error.message or f"{new.instance_id} has ended")
            reason, why = ended if has_ended(instance) else unhealthy
            self.failure = reason, sentences(why, "The version before goes on serving")
            return

    def _go_forward(self, kept: Sequence[Swap], old: Sequence[PlacementRecord]) -> None:
        paused = self._app.spec.rollout.paused
        before = self._newest(old) if old else None
        tried = before is not None and canary.is_tried(self._app, before)
        alone = self._left_alone(kept) if self.one_more and tried else None
        for swap in kept:
            self._drop(swap, before if (paused or tried) and alone is None else None)
        waiting = [it for it in kept if not self._is_there(it) and it.incoming is None and it is not alone]
        if before is None:
            for swap in waiting:
                self._bring_in(swap)
            return
        if paused:
            for swap in waiting:
                if swap.current is None:
                    self._bring_in(swap, before)
            return
        room = self._room(kept, tried=tried)
        for swap in sorted(waiting, key=self._turn):
            # What cannot be heard is left for later: nothing could be said of what comes in there.
            if room > 0 and (swap.current is None or self._seen.heard(swap.current.node)):
                self._bring_in(swap)
                room -= 1
            elif tried and swap.current is None:
                self._bring_in(swap, before)

    def _left_alone(self, kept: Sequence[Swap]) -> Swap | None:
        """Return what stays as it is while another version is tried beside it, and not in its place, too."""
        stable = stable_seat(
            self._app, [self._seat(number) for number, it in self._swaps.items() if it in kept]
        )
        if stable is None:
            return None
        swap = self._swaps[stable.number]
        if stable.is_coming:
            swap.retire(Role.INCOMING, "It is tried beside what serves first.")
        return swap

    def _go_back(self, kept: Iterable[Swap], before: PlacementRecord) -> None:
        """Bring all to the version of `before`, also what never came to the one that was given up.

        What does not start on its way back stands, failed, beside what it was to replace: told, and not begun
        again and again. A restart or another version ends it.
        """
        for swap in kept:
            current = swap.current
            moves = _is_moved(swap) and not self._is_there(swap)  # first to where it goes
            if current is not None and (current.generation == before.generation or moves):
                self._drop(swap, None)
                if swap.incoming is not None and not _is_moved(swap):
                    swap.retire(Role.INCOMING, "It was given up.")
                continue
            if swap.incoming is not None and swap.incoming.generation != before.generation:
                swap.retire(Role.INCOMING, "It was given up.")
            if swap.incoming is None:
                self._bring_in(swap, before)

    def _drop(self, swap: Swap, before: PlacementRecord | None) -> None:
        """End what comes in and is not wanted; of several versions, what serves also has a right to come."""
        incoming = swap.incoming
        if incoming is None:
            return
        if _is_moved(swap):
            if self._has_failed(incoming):
                swap.retire(Role.INCOMING, "It did not start.")
            return
        wanted = is_at(incoming, self._target) and not self._is_there(swap)
        as_before = before is not None and swap.current is None and incoming.generation == before.generation
        if not wanted and not as_before:
            swap.retire(Role.INCOMING, "Another version is wanted instead.")

    def _bring_in(self, swap: Swap, like: PlacementRecord | None = None) -> None:
        """Have a replica come in: of the wanted version, or `like` one that serves."""
        generation = like.generation if like else self._target.generation
        spec = like.spec if like else pinned(self._app.spec)
        epoch = self._epochs.next()
        self._note(swap.bring_in(Version(generation, epoch), spec))

    def _room(self, kept: Sequence[Swap], *, tried: bool) -> int:
        """Return how many more may be replaced now; few by a version that is `tried` first."""
        nothing = not any(self._serves(swap) for swap in kept)
        if not self.one_more and nothing and all(self._is_known(swap) for swap in kept):
            return self._count  # nothing serves, so nothing is at stake
        share = self._count * self._app.spec.rollout.batch_percent // 100
        busy = sum(
            not self._is_proven(swap.current) if self._is_there(swap) else self._is_coming(swap)
            for swap in kept
        )
        free = max(1, share) - busy
        if tried:
            trying = sum(self._is_there(swap) or is_at(swap.incoming, self._target) for swap in kept)
            free = min(free, canary.tried_replicas(self._app, self._count) - trying)
        return free

    def _is_coming(self, swap: Swap) -> bool:
        """Tell whether a replica has its turn: one that came as before, and failed, holds up no other."""
        incoming = swap.incoming
        return incoming is not None and not _is_moved(swap) and not self._has_failed(incoming)

    def _turn(self, swap: Swap) -> tuple[bool, bool]:
        """Return what sorts replicas: those that do not serve come first, then those on trial."""
        stable, current = canary.unproven_against(self._app), swap.current
        unproven = stable and current is not None and current.generation != stable
        return self._serves(swap), not unproven

    def _newest(self, old: Iterable[PlacementRecord]) -> PlacementRecord:
        """Return what to go back to: what has proven itself, the newest of other code, or else what only was
        not started anew."""
        target, stable = self._target, canary.unproven_against(self._app)
        return max(
            old,
            key=lambda it: (
                it.generation == stable,
                it.generation != target.generation,
                it.generation,
                it.epoch,
            ),
        )

    # What is seen of them

    def _is_there(self, swap: Swap) -> bool:
        return is_at(swap.current, self._target)

    def _instance(self, placement: PlacementRecord | None) -> Instance | None:
        """Return a placement's instance; None if its node isn't heard."""
        if placement is None or self._seen.heard(placement.node) is None:
            return None
        return self._seen.instance(placement)

    def _serves(self, swap: Swap) -> bool:
        return is_ready(self._instance(swap.current))

    def _is_known(self, swap: Swap) -> bool:
        return swap.current is None or self._seen.heard(swap.current.node) is not None

    def _has_failed(self, placement: PlacementRecord) -> bool:
        return has_ended(self._instance(placement))

    def _takes_over(self, swap: Swap) -> bool:
        """Tell whether what comes in is well enough to take the place of what serves."""
        instance = self._instance(swap.incoming)
        if instance is None or not is_ready(instance):
            return False
        return not self._serves(swap) or _is_well(instance)

    def _is_proven(self, placement: PlacementRecord | None) -> bool:
        """Tell whether the next may follow what has taken over; note when it may be so."""
        instance = self._instance(placement)
        if placement is None or instance is None or not _is_well(instance):
            return False
        due = placement.since + self._app.spec.rollout.min_ready_duration.ToMicroseconds()
        if self._now >= due:
            return True
        left = (due - self._now) / 1e6
        self.after = min(self.after or left, left)
        return False


def _is_moved(swap: Swap) -> bool:
    """Tell whether what comes in is what serves, on its way to another node."""
    current, incoming = swap.current, swap.incoming
    if current is None or incoming is None:
        return False
    return incoming.generation == current.generation and incoming.node != current.node


def _is_well(instance: Instance) -> bool:
    if not is_ready(instance):
        return False
    return instance.state == Instance.IDLE or instance.health == Instance.HEALTHY


def _is_bad(instance: Instance) -> bool:
    unhealthy = instance.state == Instance.RUNNING and instance.health == Instance.UNHEALTHY
    return unhealthy or has_ended(instance)
