"""What an update has changed, as the timeline tells it."""

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from services.control_plane.rules.differences import differences


def app(**fields: object) -> App:
    config = fields.pop("config", {})
    made = App(**fields)
    made.config.update(config)
    return made


def test_a_single_value_is_told_with_what_it_was() -> None:
    before = app(entrypoint="hello:create_app", isolation=InstanceSpec.THREAD)
    after = app(entrypoint="hello:create_ap", isolation=InstanceSpec.PROCESS, display_name="Shop")
    assert differences(before, after) == (
        "Changed: display_name (was empty), entrypoint (was hello:create_app), isolation (was THREAD)."
    )


def test_what_is_read_by_everybody_is_told_key_by_key() -> None:
    before = app(labels={"tier": "gold"}, config={"title": "Old", "kept": 1, "rates": [1, 2], "gone": ""})
    after = app(labels={"tier": "tin"}, config={"title": "New", "kept": 1, "rates": [1], "more": True})
    assert differences(before, after) == (
        "Changed: labels.tier (was gold), config.gone (was ), config.more (was not set), "
        "config.rates (was [1.0, 2.0]), config.title (was Old)."
    )


def test_of_what_may_be_secret_the_keys_alone_are_told() -> None:
    before = app(secret_env={"A": "one", "B": "x"}, env={"C": "three"})
    after = app(secret_env={"A": "two", "B": "x"}, env={"C": "four"}, annotations={"d": "five"})
    assert differences(before, after) == "Changed: annotations.d, env.C, secret_env.A."


def test_what_has_parts_is_named_and_what_is_much_is_counted() -> None:
    before = app()
    after = app(domains=["shop.example"], labels={f"k{number:02}": "v" for number in range(20)})
    after.health_check.path = "/healthz"
    told = differences(before, after)
    assert told.endswith(" and 12 more.")
    assert "labels.k00" in told
    assert differences(after, after) == ""


def test_a_long_value_is_cut() -> None:
    assert len(differences(app(display_name="x" * 1000), app())) < 200
