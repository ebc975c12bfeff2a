"""The bound of open files that a node gives itself."""

import resource

import pytest

from runtime_node.__main__ import MAX_OPEN_FILES, allow_open_files

ENDLESS = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("bounds", "raised"),
    [
        ((1024, 1 << 20), (MAX_OPEN_FILES, 1 << 20)),
        ((1024, 4096), (4096, 4096)),
        ((1024, ENDLESS), (MAX_OPEN_FILES, ENDLESS)),
        ((1 << 20, 1 << 20), None),
        ((ENDLESS, ENDLESS), None),
    ],
)
def test_it_is_raised_as_far_as_it_may_and_never_lowered(
    monkeypatch: pytest.MonkeyPatch, bounds: tuple[int, int], raised: tuple[int, int] | None
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: bounds)
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: told.append(new))
    allow_open_files()
    assert told == ([] if raised is None else [raised])
