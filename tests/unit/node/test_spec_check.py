"""Specs that say the same of what runs are checked once, and none is let through for that."""

from typing import Any

import pytest

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from runtime_node.instances import spec_check
from runtime_node.instances.spec_check import SpecCheck
from services.rpc.errors import SupervisorError


def spec(number: int = 1, **fields: Any) -> pb.InstanceSpec:
    own = {"name": f"apps/a{number}/instances/g1-e1", "app_uid": f"u-{number}"}
    return pb.InstanceSpec(**{**own, "generation": 1, "epoch": number, "entrypoint": "a:b", **fields})


def refused(check: SpecCheck, given: pb.InstanceSpec) -> list[str]:
    with pytest.raises(SupervisorError) as told:
        check.check(given)
    return [violation.field for violation in told.value.violations]


def test_a_thousand_apps_of_one_code_are_checked_as_one() -> None:
    check = SpecCheck()
    for number in range(1, 1_001):
        check.check(spec(number))
    assert check.whole == 1
    check.check(spec(env={"A": "1"}))
    assert check.whole == 2


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "apps/A"}, "spec.name"),
        ({"app_uid": ""}, "spec.app_uid"),
        ({"generation": 0}, "spec.generation"),
        ({"epoch": 0}, "spec.epoch"),
        ({"database_url": "postgresql://h/d"}, "spec.database_url"),
        ({"database_pool_size": -1}, "spec.database_pool_size"),
        ({"entrypoint": "nonsense"}, "spec.entrypoint"),
        ({"domains": ["Shop.Example"]}, "spec.domains[0]"),
    ],
)
def test_what_is_wrong_is_refused_beside_what_was_found_sound(fields: dict[str, Any], field: str) -> None:
    check = SpecCheck()
    check.check(spec())
    for _ in range(2):  # nor is what was refused remembered as sound
        assert refused(check, spec(2, **fields)) == [field]


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_check, "MOST", 2)
    check = SpecCheck()
    for turn in range(2):
        for code in ("a:a", "a:b", "a:c"):
            check.check(spec(entrypoint=code))
        assert check.whole == 3 * (turn + 1)
