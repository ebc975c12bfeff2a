"""Asking where all threads stand ends, whatever starts and collects meanwhile."""

import gc
import subprocess
import sys
import threading
from pathlib import Path

from runtime_node.isolation.frames import current_frames

ROOT = Path(__file__).resolve().parents[3]
MANY_COLLECTIONS = """
import gc, threading, time
from runtime_node.isolation.frames import current_frames

gc.set_threshold(1)
gc.callbacks.append(lambda *facts: time.sleep(0))
ended = False

def look():
    while not ended:
        current_frames()

looker = threading.Thread(target=look)
looker.start()
for _ in range(300):
    started = threading.Thread(target=int)
    started.start()
    started.join()
ended = True
looker.join()
print("ended")
"""


def test_threads_that_start_and_collections_do_not_stop_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MANY_COLLECTIONS],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.stdout == "ended\n", done.stderr


def test_every_thread_is_there_and_collections_stay_as_they_were() -> None:
    assert threading.get_ident() in current_frames()
    assert gc.isenabled()
    gc.disable()
    try:
        current_frames()
        assert not gc.isenabled()
    finally:
        gc.enable()
