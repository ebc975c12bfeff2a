"""What a program logs and prints, and a reader that is slow, gone, or comes back."""

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from services.rpc import output
from services.rpc.logs import QueuedHandler, TextFormatter, escaped
from services.rpc.output import LineOutput, LineStream
from tests.e2e.stack import eventually


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        for end in (reading, writing):
            with suppress(OSError):
                os.close(end)


def notice(dropped: int) -> str:
    return f"<{dropped} missing>\n"


def read_until(descriptor: int, last: str) -> str:
    text = ""
    while last not in text:
        text += os.read(descriptor, 65536).decode()
    return text


def test_lines_come_in_their_order():
    with pipe() as (reading, writing):
        out = LineOutput(writing, notice)
        for number in range(100):
            out.put(f"{number}\n")
        out.close(5)
        assert read_until(reading, "99\n") == "".join(f"{number}\n" for number in range(100))


def test_nobody_waits_for_a_reader_and_the_loss_is_told_in_its_place(monkeypatch):
    monkeypatch.setattr(output, "MAX_LINES", 50)
    line = "x" * 4000
    with pipe() as (reading, writing):
        out = LineOutput(writing, notice)
        for _ in range(1000):
            out.put(f"before {line}\n")
        assert out.dropped > 800
        first = os.read(reading, 4096)
        eventually(lambda: out._queue.qsize() < 50, "there is room again")
        out.put(f"after {line}\n")
        dropped = out.dropped
        text = first.decode() + read_until(reading, "after")
    kept = text.count("before")
    assert kept + dropped == 1000
    # Most often in one place; where a line got through in between, in the place of each loss.
    told = list(re.finditer(r"<(\d+) missing>", text))
    assert sum(int(it[1]) for it in told) == dropped
    assert text.index("before") < told[0].start()
    assert told[-1].start() < text.index("after")


def test_a_loss_is_told_when_nothing_comes_after_it(monkeypatch):
    monkeypatch.setattr(output, "MAX_LINES", 5)
    with pipe() as (reading, writing):
        out = LineOutput(writing, notice)
        for _ in range(100):
            out.put("x" * 4000 + "\n")
        assert f"<{out.dropped} missing>" in read_until(reading, "missing")


def test_bytes_that_wait_have_a_bound(monkeypatch):
    monkeypatch.setattr(output, "MAX_BYTES", 1 << 20)
    with pipe() as (_, writing):
        out = LineOutput(writing, notice)
        for _ in range(100):
            out.put("x" * 100_000 + "\n")
        assert out._put - out._written <= 1 << 20
        assert out.dropped >= 89


def test_a_reader_that_is_gone_costs_nothing_but_its_lines():
    reading, writing = os.pipe()
    os.close(reading)
    out = LineOutput(writing, notice)
    out.put("a\n")
    eventually(lambda: out.dropped, "the loss is counted")
    out.put("b\n")
    assert out.dropped == 2
    out.close(5)
    assert not out._thread.is_alive()
    os.close(writing)


def test_a_descriptor_that_others_made_non_blocking_loses_nothing():
    with pipe() as (reading, writing):
        os.set_blocking(writing, False)
        out = LineOutput(writing, notice)
        for number in range(2_000):
            out.put(f"{number} {'x' * 200}\n")
        text = read_until(reading, "1999 ")
        assert [line.split()[0] for line in text.splitlines()][:1999] == [str(n) for n in range(1999)]
        assert out.dropped == 0


def test_what_is_printed_in_pieces_comes_as_lines():
    with pipe() as (reading, writing):
        out = LineOutput(writing, notice)
        stream = LineStream(out, writing, "<stderr>")
        print("one", "two", file=stream)
        stream.write("par")
        stream.write("tial\nrest")
        stream.flush()
        out.close(5)
        assert read_until(reading, "rest") == "one two\npartial\nrest"


def test_a_full_log_blocks_no_thread_that_logs(monkeypatch):
    monkeypatch.setattr(output, "MAX_LINES", 10)
    logger = logging.Logger("full")
    with pipe() as (_, writing):
        logger.addHandler(QueuedHandler(LineOutput(writing, notice)))
        threads = [
            threading.Thread(target=lambda: [logger.warning("x" * 1000) for _ in range(500)], daemon=True)
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)


def test_no_line_moves_a_terminals_cursor():
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", ("a\rb\x1b]0;title\x07c\x9b2J\u202ed",), None)
    vars(record).update(action="app.log", source="e\x1b[2Jf", note='say "hi"\n')
    line = TextFormatter().format(record)
    assert line.isprintable()
    assert "a\\rb\\x1b]0;title\\x07c\\x9b2J\\u202ed" in line
    assert 'source="e\\x1b[2Jf"' in line
    assert 'note="say \\"hi\\"\\n"' in line
    assert escaped("plain, größer, 漢字") == "plain, größer, 漢字"
