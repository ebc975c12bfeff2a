"""A program's log as JSON: every line one object, whatever the record holds."""

import json
import logging
import os
import sys
import threading
from datetime import datetime

import pytest

from services.rpc import logs
from services.rpc.logs import JsonFormatter, QueuedHandler
from services.rpc.output import MAX_LINE_BYTES, LineOutput, LineStream
from tests.unit.rpc.test_output import notice, pipe, read_until


def record(message: str = "hello %s", *arguments: object, **facts: object) -> logging.LogRecord:
    made = logging.LogRecord("node", logging.WARNING, "", 0, message, arguments or None, None)
    vars(made).update(facts)
    return made


def written(made: logging.LogRecord) -> dict:
    line = JsonFormatter().format(made)
    assert line.isprintable()
    assert len(line.encode()) < MAX_LINE_BYTES
    return json.loads(line)


def test_a_record_is_its_fields_and_what_it_tells():
    made = record(
        "hello %s", "you", action="x.done", instance="apps/shop/instances/g1-e1", tries=2, none=None
    )
    event = written(made)
    assert event == {
        "time": event["time"], "severity": "WARNING", "logger": "node", "message": "hello you",
        "action": "x.done", "app": "apps/shop", "instance": "apps/shop/instances/g1-e1", "tries": 2,
    }  # fmt: skip
    assert event["time"].endswith("Z")
    assert len(event["time"]) == len("2026-01-02T03:04:05.678Z")
    assert abs(datetime.fromisoformat(event["time"]).timestamp() - made.created) < 0.001


def test_a_traceback_is_one_field():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        made = record("it failed", request_id="r-1")
        made.exc_info = sys.exc_info()
    event = written(made)
    assert event["request_id"] == "r-1"
    assert event["traceback"].startswith("Traceback (most recent call last):\n")
    assert event["traceback"].endswith("ValueError: two\nlines\n")


@pytest.mark.parametrize(
    "text", ["a\nb\r", "\x1b[2J\x07", "\x7f\x9b", "\u202e\u2028", "\udc80", "\U000e0001", "größer 漢字"]
)
def test_any_text_stays_one_line_and_comes_back_as_it_was(text):
    event = written(record(text, odd=text))
    assert (event["message"], event["odd"]) == (text, text)


def test_what_json_has_no_word_for_is_text():
    event = written(record("x", endless=float("inf"), kind=int, several=[1, "b", float("nan")]))
    assert (event["endless"], event["kind"], event["several"]) == ("inf", "<class 'int'>", [1, "b", "nan"])


def test_a_fact_does_not_replace_a_field():
    event = written(record("x", time="noon", severity="dire"))
    assert (event["severity"], event["severity_"], event["time_"]) == ("WARNING", "dire", "noon")


def test_a_record_that_is_too_long_is_cut_and_still_whole_json():
    event = written(record("m" * 1000, stack="\x1b" * 200_000, other="o" * 200_000))
    assert event["message"] == "m" * 1000
    assert event["stack"].endswith(" […]")
    assert event["other"].endswith(" […]")


def test_what_is_printed_is_an_event_for_each_line():
    with pipe() as (reading, writing):
        out = LineOutput(writing, notice)
        stream = LineStream(out, writing, "<stderr>", logs._line_form("stderr", "json"))
        print("one\n\ntwo\x1b", file=stream)
        stream.write("rest")
        stream.flush()
        out.close(5)
        lines = [json.loads(line) for line in read_until(reading, "rest").splitlines()]
    assert [line["message"] for line in lines] == ["one", "two\x1b", "rest"]
    assert {(line["severity"], line["logger"]) for line in lines} == {("WARNING", "stderr")}


def test_a_loss_is_an_event_too():
    assert json.loads(logs._notice("json")(7)) | {"time": ""} == {
        "time": "", "severity": "WARNING", "logger": "log", "message": "lines are missing here",
        "action": "log.dropped", "dropped": 7,
    }  # fmt: skip


def test_a_thread_that_fails_is_one_event(caplog, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", logs._log_fault_of_thread)
    thread = threading.Thread(target=lambda: 1 / 0, name="worker")
    thread.start()
    thread.join()
    (told,) = caplog.records
    assert (told.action, told.thread_name, told.exc_info[0]) == ("thread.failed", "worker", ZeroDivisionError)


def test_the_log_of_a_program_goes_where_its_handler_writes(monkeypatch):
    reading, writing = os.pipe()
    handler = QueuedHandler(LineOutput(writing, notice), "json")
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler(), handler])
    assert logs.program_handler() is handler
    os.close(reading)
