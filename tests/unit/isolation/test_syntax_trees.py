"""Threads of one process build syntax trees without getting into each other's way."""

import ast
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from runtime_node.isolation import install

SOURCE = "\n".join(f"def f{number}(a): return [a + {number}, (a, a)]" for number in range(60))


@pytest.fixture
def interrupted() -> Iterator[None]:
    """Let Python code run, and so other threads, while trees are built."""

    def give_way(*_: Any) -> None:
        threading.Event().wait(0.0001)

    thresholds = gc.get_threshold()
    gc.callbacks.append(give_way)
    gc.set_threshold(100)
    yield
    gc.set_threshold(*thresholds)
    gc.callbacks.remove(give_way)


def test_threads_at_different_depths_build_trees_at_the_same_time(interrupted: None) -> None:
    install()
    faults: list[BaseException] = []

    def build(depth: int) -> None:
        if depth:
            build(depth - 1)
            return
        try:
            for _ in range(4):
                ast.parse(SOURCE)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=build, args=(depth,)) for depth in (0, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert faults == []


def test_compile_takes_what_it_always_took_and_inherits_its_callers_future() -> None:
    install()
    space: dict[str, Any] = {"__builtins__": __builtins__}
    exec("from __future__ import annotations\nmade = compile('def f(a: int): ...', 'x', 'exec')", space)
    exec(space["made"], space)
    assert space["f"].__annotations__ == {"a": "int"}
    exec(compile("def g(a: int): ...", "x", "exec", dont_inherit=True), space)
    assert space["g"].__annotations__ == {"a": int}
    assert eval(compile(ast.parse("1 + 1", mode="eval", feature_version=(3, 8)), "x", "eval", 0)) == 2
