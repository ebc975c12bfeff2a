"""Does the same for many things at the same time, with one bar that counts those that are done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from services.cli.session import Session

T = TypeVar("T")
R = TypeVar("R")

WIDTH = 16
"""How many at a time: so many starts a node does at once, and so many writes share a commit."""


def each(
    session: Session, title: str, work: Callable[[T, threading.Event], R], items: Sequence[T]
) -> list[R]:
    """Return what `work` returns for each item, in their order.

    `work` runs on other threads; its event is set once nobody waits for it any more: after Ctrl-C, or after
    another one has failed. What the first item in order failed of is raised, and no further ones are begun.
    """
    ended = threading.Event()
    pool = ThreadPoolExecutor(WIDTH)
    futures = [pool.submit(work, item, ended) for item in items]
    try:
        with Progress(
            TextColumn("{task.description}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn(),
            console=session.output.notes, transient=True, disable=not session.output.interactive,
        ) as progress:  # fmt: skip
            task = progress.add_task(title, total=len(items))
            for done in as_completed(futures):
                if done.exception() is not None:
                    break
                progress.advance(task)
    finally:
        ended.set()
        pool.shutdown(wait=False, cancel_futures=True)
    for future in futures:
        if _failed(future):
            future.result()
    return [future.result() for future in futures]


def _failed(future: Future[R]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is not None
