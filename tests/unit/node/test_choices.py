"""Pure choices: routes, dormancy, probes' verdicts, start slots, tiers, trimmed details, configs."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceSpec
from runtime_node.instances.contexts import app_context
from runtime_node.instances.dormancy import Candidate, evicted, expired
from runtime_node.instances.probe import Probe
from runtime_node.instances.record import MAX_DETAIL_BYTES, trim_detail
from runtime_node.instances.routes import serving
from runtime_node.instances.start_limiter import StartLimiter
from runtime_node.loader.code_files import CodeState
from runtime_node.tiers.choice import Runners
from services.spec.effective import EffectiveHealthCheck
from tests.eventually import WITHIN

# --- routes ---

instances = st.builds(
    lambda state, epoch, generation: SimpleNamespace(
        state=state, uid="u", epoch=epoch, generation=generation, version=(epoch, generation)
    ),
    st.sampled_from(
        [
            Instance.PENDING,
            Instance.STARTING,
            Instance.RUNNING,
            Instance.IDLE,
            Instance.STOPPING,
            Instance.FAILED,
        ]
    ),
    st.integers(1, 3),
    st.integers(1, 3),
)


@given(st.lists(instances, max_size=6))
def test_the_newest_ready_instance_serves_whatever_else_is_there(all_of_app: list[Any]) -> None:
    ready = [i for i in all_of_app if i.state in {Instance.RUNNING, Instance.IDLE}]
    chosen = serving(all_of_app)
    if ready:
        assert chosen in ready
        assert chosen.version == max(i.version for i in ready)
    elif chosen is not None:
        assert chosen.state != Instance.STOPPING
    else:
        assert all(i.state == Instance.STOPPING for i in all_of_app)


def test_an_app_created_anew_comes_before_the_one_whose_name_it_has() -> None:
    old = SimpleNamespace(state=Instance.RUNNING, uid="old", version=(9, 9))
    new = SimpleNamespace(state=Instance.RUNNING, uid="new", version=(1, 1))
    assert serving([old, new]) is new  # type: ignore[list-item]


# --- dormancy ---


def candidate(**changes: Any) -> Candidate:
    fields = {
        "name": "a", "busy": False, "ready": 0.0, "start_seconds": 0.1, "last_used": 0.0,
        "idle_timeout": 60.0,
    }  # fmt: skip
    return Candidate(**{**fields, **changes})


def test_only_an_unused_instance_is_expired_and_only_after_its_time() -> None:
    assert expired([candidate()], now=59.9) == []
    assert expired([candidate()], now=60.0) == ["a"]
    assert expired([candidate(busy=True)], now=1000.0) == []
    assert expired([candidate(last_used=950.0)], now=1000.0) == []


def test_the_least_recently_used_are_evicted_first() -> None:
    three = [candidate(name=name, last_used=used) for name, used in (("b", 2.0), ("a", 1.0), ("c", 3.0))]
    assert evicted(three, now=100.0, excess_bytes=1) == ["a"]
    assert evicted(three, now=100.0, excess_bytes=0) == []


def test_an_instance_is_not_evicted_for_less_than_it_costs_to_bring_back() -> None:
    young = candidate(ready=95.0)
    slow = candidate(name="b", start_seconds=20.0)
    assert evicted([young, slow], now=100.0, excess_bytes=1) == []
    assert evicted([candidate(busy=True)], now=100.0, excess_bytes=1) == []


@given(st.integers(1, 500))
def test_one_sweep_evicts_a_share_and_at_least_one(count: int) -> None:
    many = [candidate(name=str(n), last_used=float(n)) for n in range(count)]
    chosen = evicted(many, now=1000.0, excess_bytes=1)
    assert chosen == [str(n) for n in range(max(1, count // 10))]


# --- probes ---


def verdicts(outcomes: str, success: int = 1, failure: int = 3) -> list[str]:
    terms = EffectiveHealthCheck("/", 1.0, 1.0, success, failure)
    probe = Probe(terms)
    seen = []
    for outcome in outcomes:
        probe.record(None if outcome == "+" else "it answered 500")
        seen.append(Instance.Health.Name(probe.health))
    return seen


def test_failures_degrade_and_then_make_unhealthy() -> None:
    assert verdicts("+---+") == ["HEALTHY", "DEGRADED", "DEGRADED", "UNHEALTHY", "HEALTHY"]
    assert verdicts("-+") == ["DEGRADED", "HEALTHY"]


def test_an_unhealthy_instance_needs_its_number_of_successes() -> None:
    assert verdicts("-++-++", success=2, failure=1)[-5:] == [
        "UNHEALTHY", "HEALTHY", "UNHEALTHY", "UNHEALTHY", "HEALTHY",
    ]  # fmt: skip


# --- slots ---


async def test_slots_are_given_in_order_and_never_beyond_their_number() -> None:
    slots = StartLimiter(2, patience=60)
    first, second = slots.try_take(), slots.try_take()
    assert first is not None
    assert second is not None
    assert slots.try_take() is None
    order: list[int] = []

    async def wait(number: int) -> None:
        slot = await slots.take()
        order.append(number)
        slot.release()

    waiting = [asyncio.create_task(wait(n)) for n in range(3)]
    await asyncio.sleep(0)
    assert order == []
    first.release()
    first.release()
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2]


async def test_a_start_that_takes_long_frees_its_slot() -> None:
    slots = StartLimiter(1, patience=0.01)
    slots.try_take()
    async with asyncio.timeout(WITHIN):
        assert await slots.take() is not None


async def test_a_waiter_that_is_cancelled_takes_no_slot() -> None:
    slots = StartLimiter(1, patience=60)
    held = slots.try_take()
    assert held is not None
    waiting = asyncio.create_task(slots.take())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    held.release()
    assert slots.try_take() is not None


async def test_a_waiter_that_is_cancelled_just_when_its_turn_comes_passes_it_on() -> None:
    slots = StartLimiter(1, patience=60)
    held = slots.try_take()
    assert held is not None
    waiting = asyncio.create_task(slots.take())
    await asyncio.sleep(0)
    held.release()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert slots.try_take() is not None


# --- tiers ---


# --- details and contexts ---


@given(st.text(max_size=200), st.integers(1, 400))
def test_a_detail_is_never_longer_than_allowed_and_keeps_its_ends(text: str, times: int) -> None:
    detail = text * times
    trimmed = trim_detail(detail)
    assert len(trimmed.encode()) <= MAX_DETAIL_BYTES
    if len(detail.encode(errors="replace")) <= MAX_DETAIL_BYTES:
        assert trimmed == detail.encode(errors="replace").decode()
    else:
        assert trimmed.startswith(text[:1])
        assert trimmed.endswith(text[-1:])


def test_a_context_has_plain_values_and_hides_its_secrets(tmp_path: Path) -> None:
    spec = InstanceSpec(
        name="apps/shop/instances/a1", generation=3, env={"A": "1"}, secret_env={"KEY": "hunter2"}
    )
    spec.config.update({"n": 3, "x": 1.5, "big": 1e300, "list": [1, {"a": None}], "t": True, "s": ""})
    context = app_context(spec, tmp_path, "sqlite:///x?password=hunter2")
    assert context.config == {"n": 3, "x": 1.5, "big": 1e300, "list": [1, {"a": None}], "t": True, "s": ""}
    assert isinstance(context.config["n"], int)
    assert (context.app, context.instance, context.generation) == ("shop", spec.name, 3)
    assert "hunter2" not in repr(context)
    assert context.secrets == {"KEY": "hunter2"}


async def test_source_is_read_once_for_each_state_of_a_code() -> None:
    looks: list[str] = []
    loader = SimpleNamespace(
        kind_of=lambda entrypoint: looks.append(entrypoint) or "factory",
        needs_process=lambda entrypoint: None,
    )
    tiers = {tier: SimpleNamespace(tier=tier) for tier in (InstanceSpec.SHARED, InstanceSpec.PROCESS)}
    runners = Runners(tiers, loader)  # type: ignore[arg-type]
    spec, unasked = InstanceSpec(entrypoint="shop:create_app"), InstanceSpec.ISOLATION_TIER_UNSPECIFIED
    one, other = CodeState("one", 1), CodeState("other", 2)
    for code in (one, one, other, one):
        assert (await runners.choose(spec, unasked, code)).tier == InstanceSpec.SHARED
    assert len(looks) == 2
    for code in (CodeState("half", 1, partial=True), None):  # what was not seen whole may be another
        await runners.choose(spec, unasked, code)
        await runners.choose(spec, unasked, code)
    assert len(looks) == 6
