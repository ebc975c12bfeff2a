"""Filters: what they match, told by an oracle; what they refuse, and where."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appsupervisor.catalog.v1.app_catalog_pb2 import App, AppEvent
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.control_plane.rules.filter_grammar import MAX_DEPTH, MAX_LENGTH
from services.control_plane.rules.filters import compile_event_filter, compile_filter
from services.rpc.errors import SupervisorError

COMPARE: dict[str, Callable[[object, object], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
LETTERS = "aB*\"'\\ é."
KEYS = ["tier", "AND", "a.b/c", "x y"]
BASE = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Case:
    """A filter's text and what it has to say of an app; `tight` text can stand anywhere unbracketed."""

    text: str
    holds: Callable[[App], bool]
    tight: bool = True


def quoted(text: str, *, stars: bool = False) -> str:
    for character in '\\"' if stars else '\\"*':
        text = text.replace(character, "\\" + character)
    return f'"{text}"'


def wildcard(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)


def as_time(app: App, field: str) -> datetime | None:
    return getattr(app, field).ToDatetime(tzinfo=UTC) if app.HasField(field) else None  # type: ignore[arg-type]


def text_case(field: str, op: str, value: str) -> Case:
    return Case(f"{field} {op} {quoted(value)}", lambda app: COMPARE[op](getattr(app, field), value))


def pattern_case(field: str, negated: bool, value: str) -> Case:
    matches = wildcard(value).fullmatch
    op = "!=" if negated else "="
    return Case(
        f"{field}{op}{quoted(value, stars=True)}",
        lambda app: (matches(getattr(app, field)) is None) == negated,
    )


def contains_case(field: str, value: str) -> Case:
    return Case(f"{field}:{quoted(value)}", lambda app: value.casefold() in getattr(app, field).casefold())


def label_case(key: str, op: str, value: str) -> Case:
    def holds(app: App) -> bool:
        return COMPARE[op](app.labels[key], value) if key in app.labels else op == "!="

    return Case(f"labels.{quoted(key)} {op} {quoted(value)}", holds)


def enum_case(field: str, op: str, name: str, numbers: dict[str, int]) -> Case:
    return Case(f"{field}{op}{name}", lambda app: (getattr(app, field) == numbers[name]) == (op != "!="))


def time_case(field: str, op: str, micros: int, hours: int, is_quoted: bool) -> Case:
    wanted = BASE + timedelta(microseconds=micros)
    text = wanted.astimezone(timezone(timedelta(hours=hours))).isoformat()

    def holds(app: App) -> bool:
        found = as_time(app, field)
        return op == "!=" if found is None else COMPARE[op](found, wanted)

    return Case(f"{field} {op} {quoted(text) if is_quoted else text}", holds)


def number_case(op: str, value: int | float) -> Case:
    return Case(f"generation {op} {value}", lambda app: COMPARE[op](app.generation, value))


def search_case(value: str) -> Case:
    folded = value.casefold()
    return Case(
        quoted(value),
        lambda app: (
            folded in (app.name if "/" in value else app.name.removeprefix("apps/"))
            or folded in app.display_name.casefold()
        ),
    )


TEXTS = st.text(LETTERS, max_size=4)
OPS = st.sampled_from(sorted(COMPARE))
EQUAL = st.sampled_from(["=", "!=", ":"])
STATES = dict(Instance.State.items())
HEALTHS = dict(Instance.Health.items())
DESIRED = dict(App.DesiredState.items())

LEAVES = st.one_of(
    st.builds(text_case, st.sampled_from(["name", "display_name", "entrypoint", "uid"]), OPS, TEXTS),
    st.builds(text_case, st.just("name"), OPS, st.sampled_from(["apps/a", "apps/b"])),
    st.builds(
        pattern_case,
        st.sampled_from(["name", "display_name"]),
        st.booleans(),
        st.text("aBps/*é", max_size=6).filter(lambda text: "*" in text),
    ),
    st.builds(contains_case, st.sampled_from(["name", "display_name"]), TEXTS),
    st.builds(label_case, st.sampled_from(KEYS), OPS, TEXTS),
    st.sampled_from(KEYS).map(lambda key: Case(f"labels:{quoted(key)}", lambda app: key in app.labels)),
    st.sampled_from(KEYS).map(lambda key: Case(f"labels.{quoted(key)}:*", lambda app: key in app.labels)),
    st.builds(enum_case, st.just("state"), EQUAL, st.sampled_from(sorted(STATES)), st.just(STATES)),
    st.builds(enum_case, st.just("health"), EQUAL, st.sampled_from(sorted(HEALTHS)), st.just(HEALTHS)),
    st.builds(enum_case, st.just("desired_state"), EQUAL, st.sampled_from(sorted(DESIRED)), st.just(DESIRED)),
    st.builds(
        time_case,
        st.sampled_from(["create_time", "update_time"]),
        OPS,
        st.integers(-2, 2),
        st.integers(-11, 11),
        st.booleans(),
    ),
    st.builds(number_case, OPS, st.integers(-3, 3) | st.sampled_from([0.5, 1.0, -2.5])),
    st.builds(search_case, st.text("aBé/p ", min_size=1, max_size=3)),
    st.sampled_from(["true", "false"]).map(
        lambda word: Case(f"reconciling={word}", lambda app: app.reconciling == (word == "true"))
    ),
    st.text("ab", min_size=1, max_size=2).map(
        lambda name: Case(f"domains:{name}.de", lambda app: f"{name}.de" in app.domains)
    ),
    st.just(Case("domains:*", lambda app: len(app.domains) > 0)),
)


def both(cases: list[Case], word: str) -> Case:
    """Join by AND, by a space (the implicit AND) or by OR, with parentheses where precedence needs them."""
    bracket_or = " ".join if word == " " else f" {word} ".join
    texts = [case.text if case.tight else f"({case.text})" for case in cases]
    combine = any if word == "OR" else all
    return Case(bracket_or(texts), lambda app: combine(case.holds(app) for case in cases), tight=False)


def either_within_and(alternatives: list[Case], rest: list[Case]) -> Case:
    """`a OR b AND c` without parentheses: OR binds tighter."""
    texts = [case.text if case.tight else f"({case.text})" for case in alternatives]
    others = [case.text if case.tight else f"({case.text})" for case in rest]
    return Case(
        " AND ".join([" OR ".join(texts), *others]),
        lambda app: any(case.holds(app) for case in alternatives) and all(case.holds(app) for case in rest),
        tight=False,
    )


def negation(case: Case, word: str) -> Case:
    # A negation of a negation needs parentheses, like everything that is not a simple restriction.
    simple = case.tight and not case.text.startswith(("NOT ", "-"))
    inner = case.text if simple else f"({case.text})"
    return Case(word + inner, lambda app: not case.holds(app))


FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(both, st.lists(inner, min_size=2, max_size=4), st.sampled_from(["AND", "OR", " "])),
        st.builds(negation, inner, st.sampled_from(["NOT ", "-"])),
        st.builds(
            either_within_and,
            st.lists(inner, min_size=2, max_size=3),
            st.lists(inner, min_size=1, max_size=2),
        ),
        inner.map(lambda case: Case(f"({case.text})", case.holds)),
    ),
    max_leaves=8,
)


def make_app(
    name: str,
    title: str,
    labels: dict[str, str],
    state: int,
    times: tuple[int | None, int | None],
    generation: int,
    domains: list[str],
) -> App:
    app = App(
        name=f"apps/{name}",
        uid=title,
        display_name=title,
        entrypoint=title,
        labels=labels,
        generation=generation,
        reconciling=generation % 2 == 1,
        domains=domains,
    )
    app.state = state  # type: ignore[assignment]
    app.health = state % 5  # type: ignore[assignment]
    app.desired_state = state % 3  # type: ignore[assignment]
    for field, micros in zip(("create_time", "update_time"), times, strict=True):
        if micros is not None:
            getattr(app, field).FromDatetime(BASE + timedelta(microseconds=micros))
    return app


TIMES = st.none() | st.integers(-2, 2)
APPS = st.builds(
    make_app,
    st.text("ab", min_size=1, max_size=3),
    TEXTS,
    st.dictionaries(st.sampled_from(KEYS), TEXTS),
    st.integers(0, 8),
    st.tuples(TIMES, TIMES),
    st.integers(0, 3),
    st.lists(st.sampled_from(["a.de", "b.de", "ab.de"]), max_size=2),
)


@given(FILTERS, st.lists(APPS, min_size=1, max_size=8))
def test_a_filter_matches_what_its_parts_say(case: Case, apps: list[App]) -> None:
    matches = compile_filter(case.text)
    before = [app.SerializeToString(deterministic=True) for app in apps]
    assert [matches(app) for app in apps] == [case.holds(app) for app in apps]
    assert [app.SerializeToString(deterministic=True) for app in apps] == before


@given(FILTERS, st.lists(APPS, min_size=1, max_size=4))
def test_an_exact_name_is_a_name_without_which_nothing_matches(case: Case, apps: list[App]) -> None:
    matches = compile_filter(case.text)
    if matches.exact_name is not None:
        assert {app.name for app in apps if matches(app)} <= {matches.exact_name}


PIECES = st.sampled_from(
    [
        *("state", "name", "labels", "create_time", "generation", "RUNNING", "AND", "OR", "NOT", "foo(", "é"),
        *("=", "!=", ":", "<", "-", "(", ")", ".", "*", ",", "\\", " ", "\n", "7", "'x", '"a b"'),
        "2026-01-01T00:00:00Z",
    ]
)


@given(st.text(max_size=60) | st.lists(PIECES, max_size=14).map("".join) | st.lists(PIECES).map(" ".join))
def test_any_text_is_compiled_or_refused_with_a_column(text: str) -> None:
    app = App(name="apps/a", labels={"tier": "x"})
    refused: SupervisorError | None = None
    try:
        assert compile_filter(text)(app) in (True, False)
    except SupervisorError as error:
        refused = error
    if refused is not None:
        assert refused.reason == "INVALID_FILTER"
        assert refused.violations[0].field == "filter"
        assert 1 <= int(refused.metadata["column"]) <= len(text) + 1


def matching(text: str, **fields: object) -> bool:
    return compile_filter(text)(App(**fields))  # type: ignore[arg-type]


def refusal(text: str) -> SupervisorError:
    with pytest.raises(SupervisorError) as caught:
        compile_filter(text)
    assert caught.value.reason == "INVALID_FILTER"
    return caught.value


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_an_empty_filter_matches_everything(text: str) -> None:
    matches = compile_filter(text)
    assert matches.matches_all
    assert matches(App())


def test_the_example_of_the_contract_works() -> None:
    text = 'labels.tier = "gold" AND state != RUNNING'
    assert matching(text, labels={"tier": "gold"}, state=Instance.FAILED)
    assert not matching(text, labels={"tier": "gold"}, state=Instance.RUNNING)
    assert not matching(text, labels={"tier": "free"}, state=Instance.FAILED)


def test_or_binds_tighter_than_and() -> None:
    text = "state=RUNNING AND health=HEALTHY OR health=DEGRADED"
    assert not matching(text, state=Instance.FAILED, health=Instance.Health.DEGRADED)
    assert matching(text, state=Instance.RUNNING, health=Instance.Health.DEGRADED)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('name = "apps/a"', "apps/a"),
        ("name=apps/a", "apps/a"),
        ('state=RUNNING AND (name = "apps/a")', "apps/a"),
        ('name = "apps/\\*"', "apps/*"),
        ('name = "apps/a*"', None),
        ('name != "apps/a"', None),
        ('NOT name = "apps/a"', None),
        ('name = "apps/a" OR state=RUNNING', None),
        ('labels.name = "apps/a"', None),
        ("name:a", None),
        ("", None),
    ],
)
def test_a_filter_knows_the_one_name_it_can_match(text: str, name: str | None) -> None:
    assert compile_filter(text).exact_name == name


@pytest.mark.parametrize(
    "text", ["shop*", "*shop", "*hop*", "sh*p", "SHOP", "ho", '"shop"', "apps/shop", "apps/*"]
)
def test_a_bare_word_is_searched_for_in_the_id(text: str) -> None:
    assert matching(text, name="apps/shop")
    assert not matching(text, name="other/none")


@pytest.mark.parametrize("text", ["apps", "xhop", "hop*", "*sho"])
def test_a_bare_word_does_not_match_the_collection_or_half_a_pattern(text: str) -> None:
    assert not matching(text, name="apps/shop")


def test_a_bare_phrase_is_searched_for_in_the_display_name() -> None:
    assert matching('"big shop"', display_name="The Big Shop")
    assert not matching('"big  shop"', display_name="The Big Shop")


def test_several_values_can_stand_in_parentheses() -> None:
    text = "state = (RUNNING OR IDLE) AND labels.tier:(gold OR sil*)"
    assert matching(text, state=Instance.IDLE, labels={"tier": "silver"})
    assert not matching(text, state=Instance.FAILED, labels={"tier": "gold"})
    assert not matching(text, state=Instance.IDLE, labels={"tier": "free"})


def test_domains_are_compared_in_the_form_they_are_kept_in() -> None:
    assert matching("domains:Shop.Example.COM", domains=["shop.example.com"])
    assert matching('domains:"münchen.example"', domains=["xn--mnchen-3ya.example"])
    assert matching("domains:*.example.com", domains=["a.test", "shop.example.com"])
    assert not matching("domains:example.com", domains=["shop.example.com"])


def test_keys_of_maps_may_be_dotted_or_quoted() -> None:
    labels = {"example.com/tier": "gold"}
    assert matching("labels.example.com/tier = gold", labels=labels)
    assert matching('labels."example.com/tier":gold', labels=labels)
    assert matching('labels:"example.com/*"', labels=labels)
    assert matching("annotations.note:*", annotations={"note": ""})


def test_times_are_compared_to_the_nanosecond() -> None:
    app = App()
    app.create_time.seconds, app.create_time.nanos = 0, 1
    assert compile_filter("create_time > 1970-01-01T00:00:00Z")(app)
    assert compile_filter('create_time = "1970-01-01T01:00:00.000000001+01:00"')(app)
    assert not compile_filter("create_time < 1970-01-01T00:00:00.000000001z")(app)


def test_generations_beyond_a_float_are_told_apart() -> None:
    assert not matching(f"generation = {2**53 + 1}", generation=2**53)


def test_presence_asks_whether_a_field_is_set() -> None:
    app = App(display_name="x", state=Instance.RUNNING, generation=1)
    app.create_time.GetCurrentTime()
    for field in ("display_name", "state", "generation", "create_time"):
        assert compile_filter(f"{field}:*")(app)
        assert not compile_filter(f"{field}:*")(App())


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("state = ", 9, "expected"),
        ("state =", 8, "a quoted string"),
        ("AND", 1, "expected"),
        ("state = RUNNING AND", 20, "found the end"),
        ("(state = RUNNING", 17, "')'"),
        ("state = RUNNING)", 16, "')'"),
        ('name = "apps', 8, "not closed"),
        ("state == RUNNING", 8, "'='"),
        ("a, b", 2, "','"),
        ("colour = red", 1, "use name, uid,"),
        ("limits.max_threads = 1", 1, "no field 'limits'"),
        ("state = running", 9, "PENDING, STARTING, RUNNING"),
        ("health = RUNNING", 10, "HEALTHY, DEGRADED"),
        ("state < RUNNING", 1, "use =, !=, :"),
        ("state.x = RUNNING", 7, "no fields of its own"),
        ("name.x = 1", 6, "no fields of its own"),
        ("generation > many", 14, "a number"),
        ("generation > nan", 14, "a number"),
        ("generation > 1e999", 14, "a number"),
        ("reconciling = yes", 15, "true or false"),
        ("create_time > yesterday", 15, "a time"),
        ("create_time > '2026-13-01T00:00:00Z'", 15, "a time"),
        ("create_time > '2026-01-01T00:00:00'", 15, "a time"),
        ("create_time > 2026-01-01T00:00:00+99:00", 15, "a time"),
        ("labels = x", 1, "labels:key"),
        ("domains = x", 1, "domains:value"),
        ("name < 'a*'", 8, "star"),
        ("labels.a > 'x*'", 12, "star"),
        ('name = "a\\q"', 10, "escape"),
        ("state != (RUNNING OR IDLE)", 1, "parentheses"),
        ("state = (health = HEALTHY)", 10, "expected values"),
        ("startsWith(name)", 1, "no function"),
        ("state = upper(x)", 9, "no function"),
        ("state=RUNNING and health=HEALTHY", 15, "AND in capitals"),
        ("reconciling", 1, "quote it"),
        ("instances = x", 1, "instances.node"),
        ("instances.node = x", 1, "instances.node:value"),
        ("database.sqlite:*", 1, "database.postgres.server"),
        ("NOT NOT shop", 5, "expected"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_column(text: str, column: int, said: str) -> None:
    error = refusal(text)
    assert error.metadata["column"] == str(column)
    assert f"column {column}: " in error.message
    assert said in error.message


def test_length_and_nesting_are_bounded() -> None:
    assert "4,096" in refusal("a" * (MAX_LENGTH + 1)).message
    assert compile_filter("(" * MAX_DEPTH + "x" + ")" * MAX_DEPTH)(App(name="apps/x"))
    assert "nested" in refusal("(" * (MAX_DEPTH + 1) + "x" + ")" * (MAX_DEPTH + 1)).message
    assert "nested" in refusal("state:" + "(" * 2000 + "RUNNING" + ")" * 2000).message
    assert compile_filter(" ".join("x" for _ in range(2000)))(App(name="apps/x"))
    assert compile_filter(" OR ".join("y" for _ in range(800)))(App(name="apps/x")) is False


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
@example("ab*ba", "aba")  # a beginning and an end that overlap
@example("a*b*ba", "aba")
def test_a_star_stands_for_any_characters(pattern: str, text: str) -> None:
    matches = compile_filter(f'uid = "{pattern}"')
    assert matches(App(uid=text)) == bool(wildcard(pattern).fullmatch(text))


def test_a_pattern_of_many_stars_is_matched_in_linear_time() -> None:
    app = App(display_name="a" * 128)
    matches = compile_filter(f'display_name = "{"*a" * 1000}b"')
    assert not any(matches(app) for _ in range(1000))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ["a1", "a2", "b1"]),
        ("app = apps/a", ["a1", "a2"]),
        ('type = "Broke"', ["a2", "b1"]),
        ("actor != system AND generation > 1", ["a2"]),
        ("NOT reason:*", ["a1"]),
        ("timeout", ["b1"]),
        ("create_time >= 2026-01-02T00:00:00Z", ["b1"]),
    ],
)
def test_events_are_filtered_by_their_own_fields(text: str, found: list[str]) -> None:
    events = [
        AppEvent(name="apps/a/events/1", type="Created", actor="me", generation=1, message="a1"),
        AppEvent(name="apps/a/events/2", type="Broke", reason="X", actor="me", generation=2, message="a2"),
        AppEvent(name="apps/b/events/3", type="Broke", reason="A_TIMEOUT", actor="system", message="b1"),
    ]
    events[2].create_time.FromJsonString("2026-01-02T00:00:00Z")
    assert [event.message for event in events if compile_event_filter(text)(event)] == found


def test_an_event_filter_of_no_such_field_names_those_there_are() -> None:
    with pytest.raises(SupervisorError) as refused:
        compile_event_filter("state = RUNNING")
    assert refused.value.reason == "INVALID_FILTER"
    assert "actor" in refused.value.message


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ('instances.node:"environments/default/nodes/node-2"', True),
        ('instances.node:"*/node-1"', True),
        ("instances.node:*", True),
        ('instances.node:"node-2"', False),
        ('-instances.node:"*/node-3"', True),
        ('instances.node:("*/node-3" OR "*/node-1")', True),
        ("instances.node:(environments/default/nodes/node-2)", True),
        ('database.postgres.server = "databaseServers/main"', True),
        ('database.postgres.server != "databaseServers/main"', False),
        ("database.postgres.server:other", False),
        ("failover = AUTOMATIC", True),
    ],
)
def test_apps_are_chosen_by_the_nodes_and_the_database_server_that_they_are_on(
    text: str, matches: bool
) -> None:
    app = App(name="apps/shop", failover=App.AUTOMATIC)
    app.database.postgres.server = "databaseServers/main"
    for node in ("node-1", "node-2"):
        app.instances.add(node=f"environments/default/nodes/{node}")
    assert compile_filter(text)(app) == matches
