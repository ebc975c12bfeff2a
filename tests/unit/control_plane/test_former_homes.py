"""Nodes that forward for an app are told when it moves on: those, once, and not for ever."""

from appsupervisor.runtime.v1.runtime_environment_pb2 import Forwarding, StopInstanceRequest
from services.control_plane.reconciler.former_homes import FORWARD_SECONDS, FormerHomes

APP, UID = "apps/a", "mine"


def stop(home, epoch, uid=UID):
    request = StopInstanceRequest(name=f"{APP}/instances/g1-e{epoch}", epoch=epoch, app_uid=uid)
    request.new_home.CopyFrom(at(home))
    return request


def at(node):
    return StopInstanceRequest.NewHome(node=node, http_address=f"{node}:80")


def told(homes, home, epoch=9, uid=UID):
    return [
        (node, request.epoch, request.new_home.node)
        for node, request in homes.to_tell(APP, uid, lambda node: epoch, at(home))
    ]


def test_who_forwards_to_where_an_app_leaves_is_told_where_it_goes():
    homes = FormerHomes(lambda: 0.0)
    homes.told(APP, "a", stop("b", 1))
    assert told(homes, "b") == [], "it knows"
    assert told(homes, "c") == [("a", 9, "c")]
    homes.told(APP, "a", stop("c", 9))
    homes.told(APP, "b", stop("c", 9))
    assert told(homes, "d") == [("a", 9, "d"), ("b", 9, "d")]
    assert told(homes, "d", uid="another") == []


def test_the_node_that_an_app_returns_to_forwards_no_more():
    homes = FormerHomes(lambda: 0.0)
    homes.told(APP, "a", stop("b", 1))
    assert told(homes, "a") == []
    assert told(homes, "c") == []


def test_nobody_is_told_after_the_longest_that_a_node_forwards():
    now = [0.0]
    homes = FormerHomes(lambda: now[0])
    homes.told(APP, "a", stop("b", 1))
    now[0] = FORWARD_SECONDS
    assert told(homes, "c") == []


def test_what_a_node_says_is_learnt_unless_something_later_is_known():
    homes = FormerHomes(lambda: 0.0)
    moved = Forwarding.MovedApp(app=APP, app_uid=UID, epoch=3, new_home=at("b"))
    assert homes.learn("a", Forwarding(moved_apps=[moved])) == [APP]
    assert homes.learn("a", Forwarding(moved_apps=[moved])) == [], "no news"
    assert told(homes, "b") == []
    assert told(homes, "c") == [("a", 9, "c")]
    homes.told(APP, "a", stop("c", 9))
    assert homes.learn("a", Forwarding(moved_apps=[moved])) == []
    assert told(homes, "c") == [], "what this leader told is later"


def test_what_is_remembered_is_bounded_by_apps_and_by_nodes():
    homes = FormerHomes(lambda: 0.0, max_apps=2)
    for number in range(20):
        homes.told(APP, f"n{number}", stop("b", number + 1))
    assert [node for node, _, _ in told(homes, "c", epoch=99)] == [f"n{number}" for number in range(12, 20)]
    homes.told("apps/b", "n", stop("b", 1))
    homes.told("apps/c", "n", stop("b", 1))
    assert told(homes, "c") == [], "the app told longest ago gave way"
