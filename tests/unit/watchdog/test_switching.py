"""Turns get shorter while threads compete for the interpreter, and long again after it, within bounds."""

from runtime_node.watchdog.switching import CALM, CROWDED, LOOKS, QUIET, SHORTEST, Switching


def noted(switching: Switching, late: float, decisions: int) -> None:
    for _ in range(decisions * LOOKS):
        switching.note(late)


def test_turns_follow_the_competition_within_their_bounds() -> None:
    applied: list[float] = []
    switching = Switching(applied.append)
    noted(switching, CROWDED * 1.5, 1)
    assert applied == [CALM, CALM / 2]
    noted(switching, (CROWDED + QUIET) / 2, 5)
    assert switching.turn == CALM / 2
    noted(switching, CROWDED * 10, 20)
    assert switching.turn == SHORTEST
    noted(switching, QUIET / 2, 20)
    assert switching.turn == applied[-1] == CALM


def test_one_late_look_changes_nothing() -> None:
    applied: list[float] = []
    switching = Switching(applied.append)
    for late in (0.0005, 0.5, 0.0005, 0.5, 0.0005):
        switching.note(late)
    assert applied == [CALM]
