"""Field masks: what an update takes over, clears and refuses."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given
from hypothesis import strategies as st

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceSpec
from services.control_plane.rules.app_defaults import OUTPUT_ONLY_FIELDS, SPEC_FIELDS, normalize_app
from services.control_plane.rules.filters import compile_filter
from services.control_plane.rules.masks import apply_update, parse_path
from services.rpc.errors import SupervisorError, Violation


def current() -> App:
    app = normalize_app(
        App(
            name="apps/shop",
            display_name="Shop",
            labels={"tier": "gold", "a.b/c": "1"},
            entrypoint="shop.app:create",
            env={"A": "1", "B": "2"},
            secret_env={"KEY": "old", "OTHER": "old"},
            domains=["shop.example.com"],
            limits={"max_threads": 4, "max_queued_requests": 0},
        )
    )
    app.config.update({"colour": "red", "deep": {"one": 1, "two": 2}, "list": [1]})
    app.uid, app.generation, app.state = "u", 3, Instance.RUNNING
    return app


def updated(patch: App, *paths: str) -> App:
    return apply_update(current(), patch, FieldMask(paths=paths))


def refused(patch: App, *paths: str) -> dict[str, str]:
    with pytest.raises(SupervisorError) as caught:
        updated(patch, *paths)
    assert caught.value.reason == "INVALID_FIELD"
    return {found.field: found.rule for found in caught.value.violations}


def expected(**changes: Any) -> App:
    app = current()
    for field, value in changes.items():
        app.ClearField(field)  # type: ignore[arg-type]
        app.MergeFrom(App(**{field: value}))
    return app


def test_only_named_fields_are_taken_over() -> None:
    patch = App(display_name="New", entrypoint="other:app", domains=["x.example.com"])
    assert updated(patch, "display_name") == expected(display_name="New")


def test_neither_argument_is_changed() -> None:
    app, patch = current(), App(labels={"x": "y"}, limits={"max_threads": 9})
    apply_update(app, patch, FieldMask(paths=["labels", "limits.max_threads", "config.a.b"]))
    assert app == current()
    assert patch == App(labels={"x": "y"}, limits={"max_threads": 9})


def test_a_named_field_that_is_not_set_gets_its_default() -> None:
    app = updated(
        App(), "display_name", "limits.max_threads", "limits.max_queued_requests", "domains", "labels"
    )
    assert app.display_name == ""
    assert app.limits.max_threads == 8
    assert app.limits.max_queued_requests == 128
    assert not app.domains
    assert not app.labels
    assert app.env == {"A": "1", "B": "2"}


def test_a_named_message_is_replaced_and_a_path_into_it_is_not() -> None:
    patch = App(limits={"max_concurrent_requests": 7})
    assert updated(patch, "limits").limits.max_threads == 8
    assert updated(patch, "limits.max_concurrent_requests").limits.max_threads == 4


def test_an_explicit_zero_is_not_the_default() -> None:
    app = updated(App(limits={"max_queued_requests": 0, "stop_timeout": {}}), "limits")
    assert app.limits.max_queued_requests == 0
    assert app.limits.HasField("stop_timeout")
    assert app.limits.stop_timeout.ToNanoseconds() == 0


def test_a_path_into_a_map_sets_or_removes_one_key() -> None:
    app = updated(App(labels={"tier": "free", "new": "1"}), "labels.tier", "labels.`a.b/c`")
    assert app.labels == {"tier": "free"}
    assert updated(App(), "labels.missing") == current()


def test_a_path_into_config_sets_or_removes_one_value() -> None:
    patch = App()
    patch.config.update({"deep": {"one": None, "three": [3]}, "colour": {"name": "blue"}, "added": {"x": 1}})
    app = updated(patch, "config.deep.one", "config.deep.two", "config.deep.three", "config.added.x")
    assert dict(app.config["deep"]) == {"one": None, "three": app.config["deep"]["three"]}
    assert app.config["added"]["x"] == 1
    assert app.config["colour"] == "red"
    assert updated(patch, "config.colour.name").config["colour"]["name"] == "blue"
    assert "colour" not in updated(App(), "config.colour").config
    assert updated(App(), "config.deep.two.three", "config.none.at.all") == current()
    assert not updated(App(), "config").config.fields


def test_secrets_are_replaced_together_when_named() -> None:
    assert updated(App(secret_env={"KEY": "new"}), "secret_env").secret_env == {"KEY": "new"}
    assert updated(App(), "secret_env").secret_env == {}
    assert updated(App(secret_env={"KEY": "new"}), "secret_env.KEY").secret_env == {
        "KEY": "new",
        "OTHER": "old",
    }


def test_without_a_mask_every_set_field_is_taken_over() -> None:
    patch = App(
        name="apps/shop",
        display_name="New",
        labels={"only": "1"},
        limits={"max_threads": 9},
        desired_state=App.STOPPED,
    )
    app = updated(patch)
    assert (app.display_name, app.labels, app.desired_state) == ("New", {"only": "1"}, App.STOPPED)
    assert app.limits.max_threads == 9
    assert app.limits.max_queued_requests == 0
    assert app.entrypoint == "shop.app:create"
    assert app.secret_env == {"KEY": "old", "OTHER": "old"}


def test_what_was_read_can_be_sent_back_whole() -> None:
    read = current()
    read.secret_env.clear()
    read.etag = '"x"'
    assert updated(read, "*") == current()
    assert updated(read) == current()


def test_a_star_replaces_everything_that_can_be_set() -> None:
    app = updated(App(entrypoint="a:b", secret_env={"KEY": "new"}), "*")
    wanted = normalize_app(App(name="apps/shop", entrypoint="a:b", secret_env={"KEY": "new"}))
    wanted.uid, wanted.generation, wanted.state = "u", 3, Instance.RUNNING
    assert app == wanted


def test_output_only_fields_are_ignored_named_or_not() -> None:
    patch = App(uid="other", generation=9, uri="http://x", state=Instance.FAILED, display_name="New")
    assert updated(patch) == expected(display_name="New")
    assert updated(patch, "uid", "state", "conditions", "instances.name", "display_name") == expected(
        display_name="New"
    )
    assert updated(patch, "uid", "state.x") == current()


def test_every_bad_path_is_told_at_once_beside_the_good_ones() -> None:
    found = refused(App(), "display_name", "bogus", "limits.bogus", "labels.a*", "", "a..b", "`x", "x`y`")
    assert sorted(found) == [f"update_mask.paths[{index}]" for index in range(1, 8)]
    assert "display_name, labels" in found["update_mask.paths[1]"]
    assert "max_threads" in found["update_mask.paths[2]"]
    assert "backquotes" in found["update_mask.paths[3]"]


@pytest.mark.parametrize(
    "path",
    [
        "domains.0",
        "entrypoint.x",
        "limits.request_timeout.seconds",
        "idle_timeout.nanos",
        "labels.*.b",
        "config.*.b",
        "labels.a*",
        "lim*",
        "config." + ".".join("x" * 21),
        "x" * 2000,
        "config.*.",
        ".name",
    ],
)
def test_a_path_below_what_is_one_value_is_refused(path: str) -> None:
    assert list(refused(App(), path)) == ["update_mask.paths[0]"]


def test_a_star_stands_alone() -> None:
    assert "only path" in refused(App(), "*", "labels")["update_mask.paths[0]"]


@pytest.mark.parametrize(
    "path", ["labels", "env", "secret_env", "config", "config.deep", "limits", "database"]
)
def test_a_star_at_the_end_is_all_that_is_there(path: str) -> None:
    patch = App(labels={"x": "1"}, env={"X": "1"}, limits={"max_threads": 2}, database={"sqlite": {}})
    patch.config.update({"deep": {"x": 1}})
    assert updated(patch, f"{path}.*") == updated(patch, path)
    assert updated(patch, f"{path}.*") != current() or path == "database"


def test_a_key_that_is_a_star_stands_in_backquotes() -> None:
    app = current()
    app.annotations["*"] = "1"
    assert apply_update(app, App(), FieldMask(paths=["annotations.`*`"])) == current()


def test_a_maps_key_with_dots_may_stand_without_backquotes_as_in_a_filter() -> None:
    patch = App(labels={"a.b/c": "2", "x.y": "3"})
    for paths in (
        ("labels.a.b/c", "labels.x.y"),
        ("labels.`a.b/c`", "labels.`x.y`"),
        ("labels.`a.b/c`", "labels.x.`y`"),
    ):
        assert updated(patch, *paths).labels == {"tier": "gold", "a.b/c": "2", "x.y": "3"}
    for text in ("labels.a.b/c = 1", "labels.`a.b/c` = 1", 'labels."a.b/c" = 1', "labels:`a.b/c`"):
        assert compile_filter(text)(current()), text


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize(
    "path",
    ["config", "config.*", "config.a", "config.a.b", "labels.a", "env.A", "annotations", "domains",
     "idle_timeout", "secret_env.A", "database.external.secret_key", "health_check.path", "isolation"],
)  # fmt: skip
def test_a_path_to_what_is_not_there_changes_nothing(path: str, with_config: bool) -> None:
    app = normalize_app(App(name="apps/shop", entrypoint="a:b"))
    if with_config:
        app.config.SetInParent()
    assert normalize_app(apply_update(app, App(), FieldMask(paths=[path]))) == app


def test_too_many_paths_are_refused() -> None:
    assert list(refused(App(), *["labels"] * 513)) == ["update_mask"]


def test_immutable_fields_are_refused_only_if_they_change() -> None:
    same = App(name="apps/shop", environment="environments/default", database={"sqlite": {}})
    assert updated(same, "name", "environment", "database", "etag") == current()
    assert updated(App(), "environment", "database") == current()
    other = App(name="apps/other", environment="environments/other", database={"no_database": {}})
    assert sorted(refused(other, "name", "environment", "database")) == [
        "app.database",
        "app.environment",
        "app.name",
    ]
    assert sorted(refused(other)) == ["app.database", "app.environment"]


def test_the_inside_of_a_database_can_change_but_not_its_kind() -> None:
    app = current()
    app.database.external.secret_key = "KEY"
    patch = App(database={"external": {"secret_key": "OTHER"}})
    mask = FieldMask(paths=["database.external.secret_key"])
    assert apply_update(app, patch, mask).database.external.secret_key == "OTHER"
    assert list(refused(patch, "database.external.secret_key")) == ["app.database"]
    with pytest.raises(SupervisorError):
        apply_update(app, App(), FieldMask(paths=["database"]))


def test_an_app_that_becomes_on_request_gets_an_idle_timeout() -> None:
    assert updated(App(activation=InstanceSpec.ON_REQUEST), "activation").idle_timeout.seconds == 300


def test_no_secret_stands_in_an_error() -> None:
    with pytest.raises(SupervisorError) as caught:
        updated(App(secret_env={"KEY": "hunter2"}), "secret_env.a.b", "secret_env", "bogus")
    assert "hunter2" not in repr((caught.value.message, caught.value.violations))


SEGMENTS = st.lists(st.text("ab.`* é", min_size=1, max_size=5), min_size=1, max_size=4)


@given(SEGMENTS)
def test_backquotes_make_any_key_a_segment(segments: list[str]) -> None:
    text = ".".join("`" + segment.replace("`", "``") + "`" for segment in segments)
    assert parse_path(text) == tuple(segments)


SETTABLE = [
    *SPEC_FIELDS,
    "limits.max_threads",
    "health_check.path",
    "restart_policy.mode",
    "labels.tier",
    "config.a",
]


@given(
    st.lists(st.text("abl.`*", max_size=8) | st.sampled_from([*SETTABLE, *sorted(OUTPUT_ONLY_FIELDS), "*"]))
)
def test_any_mask_is_applied_or_refused_as_a_field(paths: list[str]) -> None:
    refusal: tuple[Violation, ...] = ()
    try:
        result = updated(App(entrypoint="a:b"), *paths)
        assert normalize_app(result) == normalize_app(normalize_app(result))
    except SupervisorError as error:
        refusal = error.violations
        assert refusal
    assert all(found.field.startswith("update_mask") for found in refusal)


LEAVES = [
    "display_name",
    "entrypoint",
    "labels",
    "env",
    "limits.max_threads",
    "health_check.path",
    "config",
    "domains",
]


def leaf(app: App, path: str) -> object:
    value: Any = app
    for name in path.split("."):
        value = getattr(value, name)
    return value


@given(st.sets(st.sampled_from(LEAVES)).filter(bool), st.permutations(LEAVES))
def test_named_fields_are_the_patchs_and_the_others_the_apps(named: set[str], order: list[str]) -> None:
    patch = App(
        display_name="p", entrypoint="p:p", labels={"p": "p"}, env={"P": "p"}, domains=["p.example.com"],
        limits={"max_threads": 9}, health_check={"path": "/p"},
    )  # fmt: skip
    patch.config.update({"p": 1})
    result = updated(patch, *[path for path in order if path in named])
    for path in LEAVES:
        assert leaf(result, path) == leaf(patch if path in named else current(), path)
