"""The state machine of an instance."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from runtime_node.instances.states import TRANSITIONS, Event, IllegalTransition, advance, initial

STATES = {state for state, _ in TRANSITIONS} | set(TRANSITIONS.values())
histories = st.lists(st.sampled_from(list(Event)), max_size=40)


def walk(on_request: bool, events: list[Event]) -> list[int]:
    """Return the states that a history leads through; illegal events are passed over."""
    states = [initial(on_request)]
    for event in events:
        if (states[-1], event) in TRANSITIONS:
            states.append(advance(states[-1], event))
    return states


@given(st.booleans(), histories)
def test_nothing_follows_a_stop(on_request: bool, events: list[Event]) -> None:
    states = walk(on_request, events)
    if Instance.STOPPING in states:
        assert states.index(Instance.STOPPING) == len(states) - 1


@given(st.booleans(), histories)
def test_nothing_runs_that_was_not_starting_just_before(on_request: bool, events: list[Event]) -> None:
    states = walk(on_request, events)
    for before, after in itertools.pairwise(states):
        if after == Instance.RUNNING:
            assert before == Instance.STARTING
        if after == Instance.STARTING:
            assert before == Instance.PENDING


@given(st.booleans(), histories)
def test_every_instance_can_be_stopped_until_it_is(on_request: bool, events: list[Event]) -> None:
    last = walk(on_request, events)[-1]
    assert last == Instance.STOPPING or advance(last, Event.STOP) == Instance.STOPPING


@given(st.booleans(), histories)
def test_every_instance_can_be_restarted_until_it_is_stopped(on_request: bool, events: list[Event]) -> None:
    last = walk(on_request, events)[-1]
    if last != Instance.STOPPING:
        assert advance(last, Event.RESTART) == Instance.PENDING


def test_an_instance_that_ended_by_itself_starts_only_by_policy_command_or_request() -> None:
    leading_to_pending = {(s, e) for (s, e), after in TRANSITIONS.items() if after == Instance.PENDING}
    assert {e for _, e in leading_to_pending} == {Event.RETRY, Event.RESTART, Event.WAKE}
    assert {s for s, e in leading_to_pending if e is Event.RETRY} == {Instance.FAILED}
    assert {s for s, e in leading_to_pending if e is Event.WAKE} == {Instance.IDLE}


def test_every_state_can_be_reached() -> None:
    reached = {initial(True), initial(False)}
    while more := {after for (s, _), after in TRANSITIONS.items() if s in reached} - reached:
        reached |= more
    assert reached == STATES


def test_an_event_out_of_its_turn_is_a_fault() -> None:
    with pytest.raises(IllegalTransition, match="READY in IDLE"):
        advance(Instance.IDLE, Event.READY)
