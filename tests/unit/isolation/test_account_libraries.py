"""What one app says who it is to an outside service is not what its neighbours are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import boto3
import celery
import pytest
import sentry_sdk

from runtime_node.isolation import running_as
from runtime_node.isolation.environ import open_overlay
from runtime_node.isolation.patches.account_libraries import SETTINGS
from runtime_node.isolation.refusals import RefusedError
from runtime_node.isolation.undo_log import undo


def initialize(name: str, sent: list[tuple[str, str]]) -> None:
    def keep(event: Any, hint: Any) -> None:
        sent.append((name, event["message"]))

    sentry_sdk.init(
        dsn=f"https://{name.split('/')[1]}@sentry.invalid/1", before_send=keep, default_integrations=False
    )


def test_events_of_an_app_go_to_the_project_of_that_app(me: str, other: str) -> None:
    sent: list[tuple[str, str]] = []
    for name in (me, other):
        with running_as(name):
            initialize(name, sent)
    for name in (me, other):
        with running_as(name):
            sentry_sdk.capture_message(f"of {name}")
    sentry_sdk.capture_message("the node's")
    assert sent == [(me, f"of {me}"), (other, f"of {other}")]
    undo(me)
    with running_as(me):
        sentry_sdk.capture_message("nobody's")
    with running_as(other):
        sentry_sdk.capture_message("still")
    assert sent[2:] == [(other, "still")]


def test_what_is_initialized_at_import_serves_all_instances_of_the_code(me: str, other: str) -> None:
    sent: list[tuple[str, str]] = []
    for name in (me, other):
        open_overlay(name, parent="code/mine")
    with running_as("code/mine"):
        initialize("apps/code/x", sent)
    for name in (me, other):
        with running_as(name):
            sentry_sdk.capture_message(name)
            undo(name)
    assert sent == [("apps/code/x", me), ("apps/code/x", other)]
    undo("code/mine")


@pytest.mark.parametrize(
    ("package", "setting"), [(p, s) for p, names in SETTINGS.items() for s in sorted(names)]
)
def test_an_account_of_all_is_refused_with_two_ways_out(
    me: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, setting: str
) -> None:
    (tmp_path / f"{package}.py").write_text(f"{setting} = None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, package, raising=False)
    module = __import__(package)
    with running_as(me), pytest.raises(RefusedError, match=r"a client of your own .* isolation PROCESS"):
        setattr(module, setting, "mine")
    assert getattr(module, setting) is None
    setattr(module, setting, "the node's")
    monkeypatch.delitem(sys.modules, package)


def test_the_current_celery_app_is_the_one_that_the_app_has_made(me: str, other: str) -> None:
    for name in (me, other):
        with running_as(name):
            celery.Celery(name, broker="memory://")
    for name in (me, other):
        with running_as(name):
            assert celery.current_app.main == name


def test_a_default_session_of_boto3_is_of_the_app_that_sets_it_up(me: str, other: str) -> None:
    for name in (me, other):
        with running_as(name):
            boto3.setup_default_session(
                aws_access_key_id=name, aws_secret_access_key="secret", region_name="eu-west-1"
            )
    for name in (me, other):
        with running_as(name):
            assert boto3.client("s3")._request_signer._credentials.access_key == name
    assert boto3.DEFAULT_SESSION is None
