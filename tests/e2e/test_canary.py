"""A new version gets a share of the requests first: a bad one goes back by itself, a good one takes all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from http.cookies import SimpleCookie

import pytest
from google.longrunning.operations_pb2 import CancelOperationRequest, GetOperationRequest, Operation

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from tests.e2e.edge import MIXED, STATELESS, Edge, edge, stack
from tests.e2e.stack import DEADLINE, Stack, eventually
from tests.e2e.traffic import delete

__all__ = ("edge", "stack")

pytestmark = pytest.mark.slow

NAME, HOST = "apps/tried", "tried.localhost"
HEADER = catalog.CanaryPolicy.Header(name="x-try", value="yes")


def policy(**fields: object) -> catalog.Rollout:
    canary = catalog.CanaryPolicy(weight_percent=20, min_request_count=20, max_error_ratio=0.1)
    canary.duration.FromSeconds(3600)
    canary.timeout.FromSeconds(7200)
    canary.MergeFrom(catalog.CanaryPolicy(**fields))
    return catalog.Rollout(canary=canary)


@pytest.fixture(scope="module", params=[2, 1])
def app(request: pytest.FixtureRequest, stack: Stack, edge: Edge) -> Iterator[str]:
    stack.create("tried", MIXED, database=STATELESS, replicas=request.param, rollout=policy())
    edge.serves(HOST)
    yield NAME
    delete(stack, "tried")


def update(stack: Stack, *paths: str, **fields: object) -> str:
    request = catalog.UpdateAppRequest(app=catalog.App(name=NAME, **fields))
    request.update_mask.paths.extend(paths or fields)
    return str(stack.apps.UpdateApp(request, timeout=DEADLINE).name)


def shown(stack: Stack) -> catalog.App:
    found: catalog.App = stack.apps.GetApp(catalog.GetAppRequest(name=NAME), timeout=DEADLINE)
    return found


def generations(stack: Stack) -> set[int]:
    return {it.generation for it in shown(stack).instances}


def asked_until_done(stack: Stack, edge: Edge, operation: str) -> tuple[Counter[int], Operation]:
    """Return how requests were answered until an operation was done, and the operation."""
    answers: Counter[int] = Counter()
    told: list[Operation] = []

    def done() -> bool:
        answers.update(edge.ask(host=HOST).status for _ in range(20))
        told[:] = [stack.operations.GetOperation(GetOperationRequest(name=operation), timeout=DEADLINE)]
        return told[0].done

    eventually(done, "the new version was judged", 4 * DEADLINE)
    return answers, told[0]


def test_a_bad_version_goes_back_by_itself_and_costs_no_more_than_its_share(
    stack: Stack, edge: Edge, app: str
) -> None:
    operation = update(stack, config={"broken": True})
    answers, told = asked_until_done(stack, edge, operation)
    print(answers, told.error.message)
    assert "requests failed" in told.error.message
    assert answers.keys() <= {200, 500}, "requests that neither version answered"
    # Drawn for each request: a fifth, and four standard deviations.
    count = answers.total()
    assert 0 < answers[500] <= 0.2 * count + 4 * math.sqrt(0.2 * 0.8 * count)
    canary = shown(stack).canary
    assert canary.reason == "CANARY_FAILED"
    eventually(lambda: generations(stack) == {canary.stable_generation}, "nothing else is left")
    assert [edge.ask(host=HOST).status for _ in range(50)] == [200] * 50


def test_a_version_on_trial_whose_node_is_killed_costs_no_request(stack: Stack, edge: Edge, app: str) -> None:
    update(stack, rollout=policy(header=HEADER, weight_percent=50))
    operation = update(stack, config={"colour": "red"})
    eventually(lambda: shown(stack).canary.state == catalog.Canary.ANALYZING, "the new version is on trial")
    told = shown(stack).canary
    eventually(lambda: is_of(edge, told.generation, x_try="yes"), "the new version answers")
    victim = told.nodes[0].rpartition("/")[2]
    stack.nodes[victim].kill()
    answers = [edge.ask("/", method, b"x", host=HOST, x_try="yes") for method in ("GET", "POST") * 50]
    assert Counter(it.status for it in answers) == {200: 100}
    stack.nodes[victim].start()
    eventually(lambda: stack.is_ready(victim), "it is back")
    stack.operations.CancelOperation(CancelOperationRequest(name=operation), timeout=DEADLINE)
    eventually(lambda: generations(stack) == {told.stable_generation}, "nothing else is left", 4 * DEADLINE)


def is_of(edge: Edge, generation: int, **headers: str) -> bool:
    """Tell whether a version of the app answers; nothing else is no answer."""
    answer = edge.ask(host=HOST, **headers)
    assert answer.status == 200
    return str(answer.told["instance"]).startswith(f"{NAME}/instances/g{generation}-")


def test_a_good_version_is_met_by_header_and_cookie_and_then_takes_all(
    stack: Stack, edge: Edge, app: str
) -> None:
    update(stack, rollout=policy(header=HEADER, sticky=True, weight_percent=50))
    operation = update(stack, config={"broken": False})
    eventually(lambda: shown(stack).canary.state == catalog.Canary.ANALYZING, "the new version is on trial")
    generation = shown(stack).canary.generation

    def is_new(**headers: str) -> bool:
        return is_of(edge, generation, **headers)

    eventually(lambda: "set-cookie" in edge.ask(host=HOST).headers, "Envoy knows of the trial")
    eventually(lambda: is_new(x_try="yes"), "the new version answers")
    assert all(is_new(x_try="yes") for _ in range(20))
    met = set()
    for _ in range(20):
        answer = edge.ask(host=HOST)
        (cookie,) = SimpleCookie(answer.headers["set-cookie"]).values()
        first = answer.told["instance"].startswith(f"{NAME}/instances/g{generation}-")
        assert [is_new(cookie=f"a=b; {cookie.key}={cookie.value}") for _ in range(5)] == [first] * 5
        met.add(first)
    assert met == {True, False}
    # What a policy asks may be changed meanwhile.
    canary = catalog.CanaryPolicy()
    canary.duration.FromSeconds(1)
    update(stack, "rollout.canary.duration", rollout=catalog.Rollout(canary=canary))
    answers, told = asked_until_done(stack, edge, operation)
    assert told.WhichOneof("result") == "response", told
    assert answers.keys() == {200}
    assert shown(stack).canary.state == catalog.Canary.PROMOTED
    eventually(is_new, "Envoy knows that it has taken over")
