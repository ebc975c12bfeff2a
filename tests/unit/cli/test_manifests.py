"""Documents become apps and masks: what is named is meant, what is not named is left alone."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from services.cli.errors import CliError, Exit
from services.cli.manifests import OUTPUT_FIELDS, assign, exported, parse, read_manifests
from services.control_plane.rules.app_defaults import normalize_app
from services.control_plane.rules.masks import parse_path


@pytest.mark.parametrize(
    ("content", "paths"),
    [
        ({"entrypoint": "a:b"}, {"entrypoint"}),
        ({"displayName": "x", "idle_timeout": "5s"}, {"display_name", "idle_timeout"}),
        ({"labels": {"a": "1", "k8s.io/x": "2"}}, {"labels.a", "labels.`k8s.io/x`"}),
        ({"labels": {}}, {"labels"}),
        (
            {"limits": {"max_threads": 3, "requestTimeout": "3s"}},
            {"limits.max_threads", "limits.request_timeout"},
        ),
        ({"config": {"a": {"b": 1}}, "env": {"A": "1"}}, {"config", "env"}),
        ({"database": {"sqlite": {}}, "domains": ["a.example.com"]}, {"database", "domains"}),
        ({"state": "RUNNING", "uid": "x", "etag": "y", "kind": "App"}, set()),
    ],
)
def test_the_mask_is_what_a_document_names(content: dict[str, object], paths: set[str]) -> None:
    manifest = parse({"name": "shop", **content}, "a.yaml")
    assert set(manifest.paths) == paths
    assert manifest.app.name == "apps/shop"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1], "a document is a mapping"),
        ({}, "name: is required"),
        ({"name": 5}, "name: is required"),
        ({"name": "x", "kind": "Pod"}, "only App is known"),
        ({"name": "x", "entrypont": "a:b"}, "did you mean entrypoint?"),
        ({"name": "x", "limits": {"max_thread": 1}}, "did you mean max_threads?"),
        ({"name": "x", "replicas": "many"}, "replicas"),
    ],
)
def test_a_wrong_document_is_told_with_its_place(content: object, sentence: str) -> None:
    with pytest.raises(CliError) as told:
        parse(content, "a.yaml")
    assert told.value.code is Exit.USAGE
    assert "a.yaml" in told.value.sentence
    assert sentence in told.value.sentence


def test_folders_and_documents_are_read_in_order_and_an_app_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "b.yml").write_text("name: b\n---\nname: c\n---\n")
    (tmp_path / "a.json").write_text('{"name": "a"}')
    (tmp_path / "notes.txt").write_text("not: read")
    assert [manifest.app.name for manifest in read_manifests([str(tmp_path)])] == [
        "apps/a",
        "apps/b",
        "apps/c",
    ]
    with pytest.raises(CliError, match="already"):
        read_manifests([str(tmp_path), str(tmp_path / "a.json")])


@pytest.mark.parametrize("source", ["", "nowhere.yaml"])
def test_what_cannot_be_read_is_named(source: str, tmp_path: Path) -> None:
    with pytest.raises(CliError):
        read_manifests([str(tmp_path / source)])


@given(
    st.dictionaries(st.from_regex(r"[a-z0-9./`_-]{1,20}", fullmatch=True), st.text(max_size=5), max_size=3)
)
def test_a_key_with_any_characters_is_one_part_of_a_path(labels: dict[str, str]) -> None:
    manifest = parse({"name": "shop", "labels": labels}, "x")
    parsed = [parse_path(path) for path in manifest.paths]
    assert parsed == ([("labels", key) for key in labels] or [("labels",)])


def test_what_is_exported_is_read_again_as_it_was() -> None:
    app = normalize_app(App(entrypoint="a:b", labels={"x.y": "1"}, domains=["a.example.com"]))
    app.name = "apps/shop"
    app.uid, app.generation = "u", 3
    content = exported(app)
    assert OUTPUT_FIELDS.isdisjoint(content)
    again = parse(content, "x").app
    app.ClearField("uid")
    app.ClearField("generation")
    assert again == app


@pytest.mark.parametrize(
    ("setting", "path", "expected"),
    [
        ("config.title=Shop", "config.title", {"title": "Shop"}),
        ("config.a.b=[1, 2]", "config.a.b", {"a": {"b": [1, 2]}}),
    ],
)
def test_a_setting_is_yaml_at_a_path(setting: str, path: str, expected: object) -> None:
    app = App()
    assert assign(app, setting) == path
    assert dict(app.config) == expected


def test_a_setting_of_a_text_map_stays_text_and_an_empty_one_is_named_alone() -> None:
    app = App()
    assert assign(app, "labels.`a.b`=1") == "labels.`a.b`"
    assert dict(app.labels) == {"a.b": "1"}
    assert assign(app, "idle_timeout=") == "idle_timeout"
    assert not app.HasField("idle_timeout")
    for wrong in ("", "x", "=1", "limits.max_thread=1"):
        with pytest.raises(CliError):
            assign(app, wrong)
