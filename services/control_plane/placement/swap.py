"""The swap of one replica: a placement comes in, takes over when it is ready, and the one before it goes.

If it cannot start it goes itself, and the one before it stays. Pure. Which version a replica is to run, and
which of several has its turn, is decided in `assignment` and `replicas`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.control_plane.placement.choice import Choice, choose, wish_of
from services.control_plane.placement.data_travel import (
    awaits_data,
    data_home,
    has_arrived,
    is_kept,
    may_own,
)
from services.control_plane.placement.failover import lost_placements
from services.control_plane.placement.snapshot import Snapshot, has_ended, is_ready
from services.control_plane.rules.app_defaults import RUNTIME_FIELDS, clear_fields
from services.control_plane.store.records import AppRecord, PlacementRecord, Role, Version

ENDING = (Role.OUTGOING, Role.LOST)
"""Roles of placements whose instances are to end."""


def spec_of(placement: PlacementRecord) -> App:
    """Return the spec that a placement runs."""
    return App.FromString(placement.spec)


def pinned(spec: App) -> bytes:
    """Return what a placement keeps of an app's spec: the fields that a node is told of."""
    kept = App()
    kept.CopyFrom(spec)
    clear_fields(kept, (field.name for field, _ in spec.ListFields() if field.name not in RUNTIME_FIELDS))
    return kept.SerializeToString(deterministic=True)


class Swap:
    """One replica's placements, and what becomes of them. `decide` is all of it for an app that has one."""

    def __init__(
        self,
        app: AppRecord,
        placements: Iterable[PlacementRecord],
        seen: Snapshot,
        now: int,
        *,
        replica: int = 0,
        siblings: Callable[[], Collection[str]] = tuple,
        next_epoch: Callable[[], int] | None = None,
    ) -> None:
        """`siblings` tells the nodes of the other replicas. `next_epoch` gives the replica epochs of its own;
        without it, it runs under the app's: the one that is wanted, raised where that has to be.
        """
        self._app = app
        self._seen = seen
        self._now = now
        self._replica = replica
        self._siblings = siblings
        self._next_epoch = next_epoch
        self.target = app.target
        self.failed = app.failed
        self.unplaced_reason = "NO_NODE_AVAILABLE"
        known = tuple(placements)
        told = [self._with_data(it, known) for it in known]
        self._placements = {it.name: _with_data_of(data_home(told), it) for it in told}

    @property
    def placements(self) -> tuple[PlacementRecord, ...]:
        """The placements that the replica is to have."""
        return tuple(self._placements.values())

    @property
    def current(self) -> PlacementRecord | None:
        """The placement that serves, or did last."""
        return placement_of(self._placements.values(), Role.CURRENT)

    @property
    def incoming(self) -> PlacementRecord | None:
        """The placement that is to take over."""
        return placement_of(self._placements.values(), Role.INCOMING)

    def decide(self) -> str:
        """Decide on an app that has one replica; return why what is wanted can't be, or nothing."""
        unplaced = self.settle()
        if self.incoming is not None and is_ready(self.instance(self.incoming)):
            self.promote()
        if self._app.deleting or self._app.spec.desired_state == App.STOPPED:
            self.end()
        else:
            unplaced = self._go_on() or unplaced
        self.forget()
        return unplaced

    def settle(self) -> str:
        """Take note of nodes that are gone or lost; return why what was there can't be elsewhere."""
        self._leave_deleted_nodes()
        return self._lose()

    def promote(self) -> None:
        """Let what comes in take over."""
        incoming = self.incoming
        if incoming is None:
            return
        self.retire(Role.CURRENT, f"{incoming.instance_id} has taken over.")
        self._give(incoming, Role.CURRENT, incoming.why)
        if incoming.version == self.target:
            self.failed = None

    def end(self) -> None:
        """Take the replica of an app away that is deleted or stopped."""
        if not self._app.deleting:
            self._rest()
            return
        for placement in self.placements:
            if placement.role is not Role.LOST:
                self._give(placement, Role.OUTGOING, "The app is being deleted.")
            elif self._seen.heard(placement.node) is None:
                del self._placements[placement.name]  # given up with its data: nobody waits for it

    def _rest(self) -> None:
        """Have an app that is stopped be where its data is, or goes."""
        incoming = self.incoming
        if self.current is None or incoming is None:
            return  # the one that comes in stays, for the data of its tries
        if has_arrived(self._placements.values()):
            self.retire(Role.CURRENT, f"{incoming.instance_id} has its data.")
            self._give(incoming, Role.CURRENT, incoming.why)
        elif not awaits_data(incoming, self._placements.values()):
            self.retire(Role.INCOMING, "The app was stopped.")

    def dismiss(self, why: str) -> None:
        """Take the replica away: there are to be fewer."""
        self.retire(Role.INCOMING, why)
        self.retire(Role.CURRENT, why)

    def _with_data(self, placement: PlacementRecord, known: tuple[PlacementRecord, ...]) -> PlacementRecord:
        """Note that an app which keeps its data on its node has run there: a dormant one may never have."""
        if placement.has_data or placement.role is Role.LOST:
            return placement  # what was given up was so with its data
        if not leaves_data(self._app, self._seen.instance(placement)) or not may_own(placement, known):
            return placement  # there is none, or it has left
        return replace(placement, has_data=True)

    def _lose(self) -> str:
        """Give up what is on lost nodes, for copies elsewhere; return why there can't be one."""
        lost = lost_placements(self._app, self._placements.values(), self._seen)
        if not lost:
            return ""
        current, nodes = self.current, ", ".join(sorted({it.node for it in lost}))
        moves = current if current in lost else None
        choice = self._choose()
        if not choice.node and (moves is not None or current is None):
            return f"{nodes} is lost, and nobody else can take it: {choice.reason}"
        for placement in lost:
            self._give(placement, Role.LOST, f"{placement.node} was lost.")
        again = self.failed == self.target
        if self._next_epoch is None:
            newer = [it.epoch + 1 for it in lost if it.role is not Role.OUTGOING]
            self.target = replace(self.target, epoch=max([self.target.epoch, *newer]))
        if moves is not None:
            # What served goes on, also where a newer version had been given up in its favour.
            self.failed = self.target if again else self.failed
            epoch = self._next_epoch() if self._next_epoch is not None else self.target.epoch
            why = f"{moves.node} was lost; on {choice.node}: {choice.reason}."
            self._add(replace(moves, epoch=epoch, node=choice.node, why=why, has_data=False, since=self._now))
        return ""

    def _leave_deleted_nodes(self) -> None:
        """Give up what was on nodes that are gone. Where data went with one, that is kept in mind."""
        left = False
        for placement in list(self._placements.values()):
            if placement.node not in self._seen.gone:
                continue
            if placement.has_data and not self._app.deleting:
                self._give(placement, Role.LOST, "Its node was deleted, and its data with it.")
            else:
                del self._placements[placement.name]
            left = left or placement.role in (Role.CURRENT, Role.INCOMING)
        if not left:
            return
        rest = self._placements.values()
        if data_home(rest) is None and any(it.role is Role.LOST and it.has_data for it in rest):
            # The data was on its way, or had just gone: nothing begins without it.
            self.retire(Role.INCOMING, "The data that it waited for was given up.")
            self.retire(Role.CURRENT, "Its data was given up.")
        if self.current is None and self.incoming is None:
            # What is gone may run all the same: what comes after it is above it.
            self.target = replace(self.target, epoch=self.target.epoch + 1)
            self.failed = None
        elif self.incoming is None:
            self.failed = self.target  # only what was to take over is gone; what serves stays where it is

    def _go_on(self) -> str:
        """Bring the wanted version in, unless it is there or was given up; return why it can't be."""
        self.keep_what_serves()
        target, current = self.target, self.current
        if current is not None and current.version == target:
            self.retire(Role.INCOMING, "The version before it is wanted again.")
            self.failed = None
            return ""
        incoming = self.incoming
        if incoming is not None and incoming.version != target and not self._is_moved(incoming, current):
            self._give(incoming, Role.OUTGOING, f"{target.instance_id} is wanted instead.")
            incoming = None
        if incoming is not None:
            self._give_up(incoming, current)
            return ""
        if self.failed == target and current is not None:
            return ""
        self.failed = None
        return self.bring_in(target, pinned(self._app.spec))

    def keep_what_serves(self) -> None:
        """Take for the version before what was replaced as it started, and was ready all the same.

        Its stop may have been lost, or its node silent. Else nothing would end it if what replaces it fails.
        """
        if self.current is not None:
            return
        outgoing = (it for it in self._placements.values() if it.role is Role.OUTGOING)
        ready = [it for it in outgoing if is_ready(self.instance(it))]
        if ready:
            newest = max(ready, key=lambda it: (it.epoch, it.generation))
            self._give(newest, Role.CURRENT, "It was ready before what was to replace it.")

    def _is_moved(self, incoming: PlacementRecord, current: PlacementRecord | None) -> bool:
        """Tell whether what comes in is what serves, on its way to another node, and the target given up."""
        if current is None or self.failed != self.target:
            return False
        return incoming.generation == current.generation and incoming.node != current.node

    def _give_up(self, incoming: PlacementRecord, current: PlacementRecord | None) -> None:
        """Go back to the version before if what comes in has ended, and there is something to go back to.

        A version before that doesn't run any more is one only if it is of other code, or on another node.
        """
        if current is None or not has_ended(self.instance(incoming)):
            return
        other = current.generation != incoming.generation or current.node != incoming.node
        if is_ready(self.instance(current)) or other:
            self._give(incoming, Role.OUTGOING, "It did not start.")
            self.failed = self.target

    def bring_in(self, version: Version, spec: bytes) -> str:
        """Have a version come in, with the spec pinned to it, where the replica was or on another node.

        Returns why it can't be placed.
        """
        # Nothing moves without a reason, and the app's data is where it was.
        staying = (it for it in self._placements.values() if it.role is not Role.LOST)
        lost = next((it for it in self._placements.values() if it.role is Role.LOST and it.has_data), None)
        left = next(staying, None) if lost is None else None  # beside lost data it has none of its own
        before = data_home(self._placements.values()) or self.current or left
        node, why = (before.node, "It was there before.") if before is not None else ("", "")
        if before is None and lost is not None:
            if self._seen.heard(lost.node) is None:
                self.unplaced_reason = "DATA_LOST"
                return (
                    f"Its data was given up with {lost.node}, which was deleted; accept_data_loss starts it "
                    "anew, or that node, registered again with the data, brings it back."
                )
            node, why = lost.node, "Its node is back, and its data with it."
        elif before is None:
            choice = self._choose()
            if not choice.node:
                return choice.reason
            node, why = choice.node, f"On {choice.node}: {choice.reason}."
        placement = PlacementRecord(
            app=self._app.name,
            app_uid=self._app.uid,
            replica=self._replica,
            generation=version.generation,
            epoch=version.epoch,
            node=sys.intern(node),  # one string for all that is on a node
            role=Role.INCOMING,
            spec=spec,
            why=why,
            has_data=_has_data(before or lost, node),
            since=self._now,
        )
        self._add(placement)
        return ""

    def _choose(self) -> Choice:
        siblings = tuple(self._siblings())
        cordoned = self._seen.environment_cordoned
        wish = wish_of(self._app.spec, environment_cordoned=cordoned, siblings=siblings)
        return choose(wish, self._seen.candidates)

    def _add(self, placement: PlacementRecord) -> None:
        self._placements[placement.name] = placement

    def forget(self) -> None:
        """Forget what has ended: it was told by its node once and is not there any more.

        Of an app that is being deleted nothing is: its data has to be dealt with first.
        """
        if self._app.deleting:
            return
        told = {instance.name for instance in self._app.status.instances}
        for placement in list(self._placements.values()):
            ended = placement.instance in told and self._seen.instance(placement) is None
            kept = is_kept(placement, self._placements.values())
            if (
                placement.role in ENDING
                and ended
                and not kept
                and self._seen.heard(placement.node) is not None
            ):
                del self._placements[placement.name]

    def instance(self, placement: PlacementRecord) -> Instance | None:
        """Return a placement's instance; None if its node is not heard."""
        return self._seen.instance(placement) if self._seen.heard(placement.node) else None

    def retire(self, role: Role, why: str) -> None:
        """End what has a role, if there is something."""
        placement = placement_of(self._placements.values(), role)
        if placement is not None:
            self._give(placement, Role.OUTGOING, why)

    def _give(self, placement: PlacementRecord, role: Role, why: str) -> None:
        if placement.role is not role:
            placement = replace(placement, role=role, why=why, since=self._now)
        self._placements[placement.name] = placement


def leaves_data(app: AppRecord, instance: Instance | None) -> bool:
    """Tell whether an instance leaves data of its app on its node: one that never ran has left none."""
    if instance is None or app.spec.database.WhichOneof("kind") not in (None, "sqlite"):
        return False
    return instance.state == Instance.RUNNING or instance.HasField("ready_time")


def _with_data_of(home: PlacementRecord | None, placement: PlacementRecord) -> PlacementRecord:
    """Note that what is to run where the data is has it too: what it replaced may have run since."""
    if home is None or home.node != placement.node or placement.role not in (Role.CURRENT, Role.INCOMING):
        return placement
    return placement if placement.has_data else replace(placement, has_data=True)


def _has_data(before: PlacementRecord | None, node: str) -> bool:
    return before is not None and before.has_data and before.node == node


def placement_of(placements: Iterable[PlacementRecord], role: Role) -> PlacementRecord | None:
    """Return the first placement that has a role."""
    for placement in placements:
        if placement.role is role:
            return placement
    return None
