"""A program to be killed: writes to a store from several threads and prints what was acknowledged.

Reads a database URL and a round's number per line; for each it forks a child that opens the store and
writes until it is killed. Lines: `pid N`, then `ack <app> <number> <revision>` (number 0: removed), `dead`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

from services.control_plane.store.interface import Transaction
from services.control_plane.store.sql_store import SqlCatalogStore, open_store
from tests.contract.store.samples import app, event, operation, request

WRITERS = 6
NEVER = 2**60


def step(name: str, number: int) -> Callable[[Transaction], int]:
    """Writes one number into every kind of record of an app; each seventh removes the app."""

    def command(tx: Transaction) -> int:
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
        revision = store.write(step(name, number)).result()
        say(f"ack {name} {number} {revision}")


def live(url: str) -> None:
    store = open_store(url)
    for writer in range(WRITERS):
        name = f"apps/a{writer}"
        told = store.events(name, 1)
        number = int(told[0].message) if told else 0
        threading.Thread(target=work, args=(store, name, number)).start()


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            say(f"pid {os.getpid()}")
            live(line.strip())
            return
        os.waitpid(child, 0)
        say("dead")


if __name__ == "__main__":
    main()
