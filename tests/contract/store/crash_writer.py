"""A program to be killed: writes to a store from several threads and prints what was acknowledged.

Reads a database URL and a prefix of app names per line; for each it forks a child that opens the store and
writes until it is killed. Lines: `pid N`, then `ack <app> <number> <revision>` (revision 0: it was there, of
a try whose outcome was unknown), `dead`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

from services.control_plane.store.errors import StoreError
from services.control_plane.store.interface import Transaction
from services.control_plane.store.sql_store import SqlCatalogStore, open_store
from services.rpc.errors import SupervisorError
from tests.contract.store.samples import app, event, operation, request

WRITERS = 6
NEVER = 2**60


def step(name: str, number: int) -> Callable[[Transaction], int]:
    """Writes one number into every kind of record of an app; each seventh removes the app."""

    def command(tx: Transaction) -> int:
        if tx.request(f"{name} {number}") is not None:
            return 0
        tx.add_event(name, event(str(number)))
        tx.put_request(request(f"{name} {number}", NEVER))
        tx.put_operation(operation(f"operations/{name} {number}", name, done=True, expire_time=NEVER))
        if number % 7 == 0:
            tx.delete_app(name)
        else:
            tx.put_app(
                app(name, uid=f"{name} {number // 7}", generation=number, domains=(f"{name} {number}",))
            )
        return tx.revision

    return command


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # one write: lines of several threads do not mix


def work(store: SqlCatalogStore, name: str, number: int) -> None:
    while True:
        number += 1
        while True:
            try:
                revision = store.write(step(name, number)).result()
                break
            except SupervisorError:  # the database is away, or its answer was lost
                time.sleep(0.01)
        say(f"ack {name} {number} {revision}")


def opened(url: str) -> SqlCatalogStore:
    while True:
        try:
            return open_store(url)
        except StoreError:
            if url.startswith("sqlite"):
                raise
            time.sleep(0.01)  # as who is started again by its supervisor: its connection was cut


def last_number(store: SqlCatalogStore, name: str) -> int:
    while True:
        try:
            told = store.events(name, 1)
        except SupervisorError:
            time.sleep(0.01)
        else:
            return int(told[0].message) if told else 0


def live(url: str, prefix: str) -> None:
    store = opened(url)
    for writer in range(WRITERS):
        name = f"apps/{prefix}{writer}"
        number = last_number(store, name)
        threading.Thread(target=work, args=(store, name, number)).start()


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            say(f"pid {os.getpid()}")
            live(*line.split())
            return
        os.waitpid(child, 0)
        say("dead")


if __name__ == "__main__":
    main()
