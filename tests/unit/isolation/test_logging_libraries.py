"""Loguru and structlog as each of two apps sets them up, in one process."""

from __future__ import annotations

import copy
from typing import Any

import structlog
from loguru import logger

from runtime_node.isolation import running_as
from runtime_node.isolation.environ import open_overlay
from runtime_node.isolation.undo_log import undo


def test_loguru_sinks_of_an_app_hear_that_app_alone_and_are_closed_with_it(me: str, other: str) -> None:
    heard: dict[str, list[str]] = {me: [], other: []}
    for name in (me, other):
        with running_as(name):
            logger.remove()
            logger.add(heard[name].append, format="{extra[app]} {message}")
            logger.configure(extra={"app": name.split("/")[1]})
    for name in (me, other):
        with running_as(name):
            logger.info("hello")
            logger.bind(x=1).info("bound")
    assert heard == {me: ["me hello\n", "me bound\n"], other: ["other hello\n", "other bound\n"]}
    undo(me)
    with running_as(other):
        logger.info("still")
    assert heard[other][-1] == "other still\n"


def test_what_loguru_is_told_at_import_holds_for_all_instances_of_the_code(
    me: str, other: str, tmp_path: Any
) -> None:
    code, log = "code/mine", tmp_path / "all.log"
    for name in (me, other):
        open_overlay(name, parent=code)
    with running_as(code):
        logger.remove()
        logger.add(log, format="{message}")
        bound = logger.bind(of="the module")
    with running_as(me):
        bound.info("of me")
        logger.remove()  # for itself: the file is open for the others
        bound.info("not any more")
    with running_as(other):
        bound.info("of the other")
    assert log.read_text() == "of me\nof the other\n"
    undo(code)


def test_a_copy_of_the_loguru_logger_keeps_a_core_of_its_own(me: str) -> None:
    heard: list[str] = []
    with running_as(me):
        logger.remove()
        own = copy.deepcopy(logger)
        own.add(heard.append, format="{message}")
        logger.info("not there")
        own.info("there")
    assert heard == ["there\n"]


def test_loguru_levels_and_switches_are_an_apps_own(me: str, other: str) -> None:
    heard: list[str] = []
    with running_as(me):
        logger.level("NOTICE", no=21)
        logger.disable(__name__)
    with running_as(other):
        logger.add(heard.append, format="{message}")
        logger.info("heard")
        try:
            logger.level("NOTICE")
        except ValueError:
            heard.append("no such level")
    assert heard == ["heard\n", "no such level"]


def test_structlog_as_each_app_configures_it(me: str, other: str) -> None:
    heard: list[tuple[str, Any]] = []
    module_logger = structlog.get_logger()  # as a module has it that two instances share

    def sink(name: str) -> Any:
        def processor(logger: Any, method: str, event: Any) -> Any:
            heard.append((name, event["event"]))
            raise structlog.DropEvent

        return processor

    for name in (me, other):
        with running_as(name):
            structlog.configure(processors=[sink(name)], cache_logger_on_first_use=True)
    for name in (me, other):
        with running_as(name):
            module_logger.info(f"hello from {name}")
    assert heard == [(me, f"hello from {me}"), (other, f"hello from {other}")]
    assert not structlog.is_configured()
    undo(me)
    with running_as(me):
        assert not structlog.is_configured()
