"""Code locations with the same module names, and editions of one package, in one process."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime_node.loader import Loader
from services.rpc.errors import SupervisorError


@pytest.fixture
def twins(apps: Path) -> Iterator[Loader]:
    loader = Loader([apps / "twin_a", apps / "twin_b"])
    yield loader
    loader.close()


async def both(served: Any, twins: Loader, path: str) -> list[Any]:
    answers = []
    async with (
        served(twins, "shop.web:create_app", app="a") as a,
        served(twins, "twin_b.shop.web:create_app", app="b") as b,
    ):
        for client in (a, b):
            answer = await client.get(path)
            assert answer.status_code == 200, answer.text
            answers.append(answer.json())
    return answers


async def test_two_apps_with_the_same_module_names_each_run_their_own_code(
    served: Any, twins: Loader
) -> None:
    a, b = await both(served, twins, "/who")
    assert a == {"who": "twin a", "package": "twin a"}
    assert b == {"who": "twin b", "package": "twin b"}


async def test_an_import_inside_a_handler_finds_the_apps_own_module(served: Any, twins: Loader) -> None:
    assert await both(served, twins, "/late") == ["late a", "late b"]


async def test_an_import_in_a_thread_the_app_started_finds_the_apps_own_module(
    served: Any, twins: Loader
) -> None:
    a, b = await both(served, twins, "/late-in-thread")
    assert a == ["late a", "settings a", "settings a"]
    assert b == ["late b", "settings b", "settings b"]


async def test_imports_by_a_string_find_the_apps_own_module(served: Any, twins: Loader) -> None:
    a, b = await both(served, twins, "/strings")
    assert set(a) == {"settings a"}
    assert set(b) == {"settings b"}


async def test_frameworks_find_the_files_of_a_package_that_is_named_to_them(tmp_path: Path) -> None:
    source = (
        "import flask, jinja2, pkgutil\n"
        "from starlette.staticfiles import StaticFiles\n"
        "def create_app(context): ...\n"
        "def found():\n"
        "    template = jinja2.Environment(loader=jinja2.PackageLoader('shop')).get_template('page.txt')\n"
        "    kept = StaticFiles(packages=[('shop', 'templates')]).all_directories[0]\n"
        "    data = pkgutil.get_data('shop', 'templates/page.txt').decode()\n"
        "    return [template.render(), data, kept, flask.Flask('shop').root_path]\n"
    )
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        (place / "shop/templates").mkdir(parents=True)
        (place / "shop/templates/page.txt").write_text(place.name)
        (place / "shop/__init__.py").touch()
        (place / "shop/web.py").write_text(source)
    loader = Loader(places)
    codes = [loader.load("shop.web:create_app"), loader.load("two.shop.web:create_app")]
    try:
        for place, code in [*zip(places, codes, strict=True)] * 2:
            found = await asyncio.to_thread(code._target.__globals__["found"])
            assert found == [place.name, place.name, str(place / "shop/templates"), str(place / "shop")]
    finally:
        for code in codes:
            code.release()


async def test_a_directory_that_is_no_package_hides_no_installed_one(tmp_path: Path) -> None:
    """As the migrations in `alembic/` beside the code, or one's own part of a namespace."""
    installed = tmp_path / "installed"
    for file in (
        installed / "regular_one/__init__.py", installed / "name_space/theirs.py",
        tmp_path / "apps/regular_one/env.py", tmp_path / "apps/name_space/ours.py",
    ):  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"PLACE = {str(file)!r}\n")
    (tmp_path / "apps/both.py").write_text(
        "import regular_one, name_space.ours, name_space.theirs\n"
        "def create_app(context): ...\n"
        "PLACES = regular_one.PLACE, name_space.ours.PLACE, name_space.theirs.PLACE\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(installed)])
        loader = Loader([tmp_path / "apps"])
        code = loader.load("both:create_app")
    try:
        assert code._target.__globals__["PLACES"] == (
            str(installed / "regular_one/__init__.py"),
            str(tmp_path / "apps/name_space/ours.py"),
            str(installed / "name_space/theirs.py"),
        )
    finally:
        code.release()
        sys.modules.pop("regular_one", None)


async def test_annotations_and_tables_are_resolved_in_the_apps_own_modules(
    served: Any, twins: Loader
) -> None:
    for who, answer in zip("ab", await both(served, twins, "/types"), strict=True):
        assert answer["same"]
        assert answer["owner"]
        assert answer["source"] == "twin"
        assert answer["fields"] == ["id", f"name_{who}"]
        assert answer["tables"] == [["id", f"name_{who}"]]
        assert answer["basket"]["owner"] == {"name": "ann"}


async def test_a_model_is_the_body_of_a_request_in_both_apps(served: Any, twins: Loader) -> None:
    async with (
        served(twins, "shop.web:create_app", app="a") as a,
        served(twins, "twin_b.shop.web:create_app", app="b") as b,
    ):
        for who, client in (("a", a), ("b", b)):
            answer = await client.post(
                "/baskets", json={"items": [{f"name_{who}": "tea"}], "owner": {"name": "x"}}
            )
            assert answer.status_code == 200, answer.text
            assert answer.json()["items"][0][f"name_{who}"] == "tea"
            assert "Basket" in (await client.get("/openapi.json")).text


async def test_what_an_app_pickles_it_reads_back_as_its_own_class(served: Any, twins: Loader) -> None:
    assert await both(served, twins, "/pickle") == [{"total": 3, "own": True}] * 2


async def test_two_editions_of_a_vendored_package_serve_side_by_side(served: Any, apps: Path) -> None:
    loader = Loader([apps / "edition_one", apps / "edition_two"])
    async with (
        served(loader, "reader_one:app", app="one") as one,
        served(loader, "reader_two:app", app="two") as two,
    ):
        assert (await one.get("/")).text == "HI (one) 1.0 one"
        assert (await two.get("/")).text == "HI (two) 2.0 two"


async def test_apps_of_one_location_share_its_modules(twins: Loader) -> None:
    first, second = twins.load("shop.web:create_app"), twins.load("shop.models:Owner.model_validate")
    try:
        assert (
            len([name for name in sys.modules if name.startswith("shop__") and name.endswith(".models")]) == 1
        )
    finally:
        first.release()
        second.release()


async def test_private_loads_of_an_app_object_share_no_state(served: Any, tmp_path: Path) -> None:
    (tmp_path / "counter.py").write_text(
        "count = 0\n"
        "async def app(scope, receive, send):\n"
        "    global count\n"
        "    assert scope['type'] == 'http'\n"
        "    count += 1\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': str(count).encode()})\n"
    )
    loader = Loader([tmp_path])
    async with (
        served(loader, "counter:app", app="x", private=True) as x,
        served(loader, "counter:app", app="y", private=True) as y,
    ):
        assert [(await x.get("/")).text for _ in range(3)] == ["1", "2", "3"]
        assert (await y.get("/")).text == "1"


async def test_changed_code_is_loaded_anew_beside_the_code_in_use(tmp_path: Path) -> None:
    module = tmp_path / "changing.py"
    module.write_text("def create_app():\n    return None\nWORD = 'old'\n")
    loader = Loader([tmp_path])
    old = loader.load("changing:create_app")
    module.write_text("def create_app():\n    return None\nWORD = 'newer'\n")
    new = loader.load("changing:create_app")
    try:
        assert old._target.__globals__["WORD"] == "old"
        assert new._target.__globals__["WORD"] == "newer"
    finally:
        old.release()
        new.release()


async def test_what_a_function_is_is_told_anew_where_its_code_has_changed(tmp_path: Path) -> None:
    module = tmp_path / "growing.py"
    loader = Loader([tmp_path])
    for parameters, takes_context in (("", False), ("", False), ("context", True)):
        module.write_text(f"def create_app({parameters}):\n    return None\n")
        code = loader.load("growing:create_app")
        assert code.takes_context is takes_context
        code.release()
    loader.close()


async def test_code_that_changed_within_a_second_and_not_in_length_is_loaded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    module = tmp_path / "quick.py"
    loader = Loader([tmp_path])
    second = int(time.time())
    for word in ("one", "two"):
        module.write_text(f"def create_app(): ...\nWORD = {word!r}\n")
        # As if both had been written in one second.
        os.utime(module, ns=(0, second * 10**9 + ord(word[0])))
        code = loader.load("quick:create_app")
        assert code._target.__globals__["WORD"] == word
        code.release()
    loader.close()


@pytest.mark.parametrize("late", ["local_settings.py", "shop/local_settings.py"])
async def test_a_module_that_comes_later_is_found_by_the_next_start(tmp_path: Path, late: str) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    name = "shop.local_settings" if "/" in late else "local_settings"
    (tmp_path / "shop" / "web.py").write_text(
        f"def create_app(): ...\ntry:\n    from {name} import WORD\nexcept ImportError:\n    WORD = 'none'\n"
    )
    loader = Loader([tmp_path])
    before = loader.load("shop.web:create_app")
    again = loader.load("shop.web:create_app")
    assert again._target is before._target, "nothing has changed yet"
    (tmp_path / late).write_text("WORD = 'local'\n")
    after = loader.load("shop.web:create_app")
    assert [code._target.__globals__["WORD"] for code in (before, after)] == ["none", "local"]
    for code in (before, again, after):
        code.release()
    loader.close()


async def test_a_link_that_is_switched_to_another_release_means_its_code(tmp_path: Path) -> None:
    for release in ("first", "second"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "released.py").write_text(f"def create_app(): ...\nWORD = {release!r}\n")
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "first")
    loader = Loader([link])
    for release in ("first", "second"):
        (tmp_path / "next").symlink_to(tmp_path / release)
        (tmp_path / "next").rename(link)
        code = loader.load("released:create_app")
        assert code._target.__globals__["WORD"] == release
        code.release()
    loader.close()


async def test_nothing_of_a_location_stays_once_it_is_unloaded(apps: Path) -> None:
    loader = Loader([apps / "twin_a"])
    loader.load("shop.web:create_app").release()
    loader.close()
    assert [name for name in sys.modules if "__twin_a" in name] == []
    assert not any("twin_a" in path for path in sys.path)


async def test_the_modules_of_a_location_are_not_importable_by_shared_code(twins: Loader) -> None:
    code = twins.load("shop.web:create_app")
    try:
        with pytest.raises(ModuleNotFoundError):
            __import__("shop.web")
    finally:
        code.release()


async def test_many_threads_load_one_location_once(apps: Path) -> None:
    loader = Loader([apps / "twin_a"])
    codes = await asyncio.gather(*[asyncio.to_thread(loader.load, "shop.web:create_app") for _ in range(8)])
    assert len({id(code._target) for code in codes}) == 1
    for code in codes:
        code.release()
    loader.close()


def _fake_extension(directory: Path, source: Path) -> None:
    (directory / "fastlib").mkdir(parents=True)
    (directory / "fastlib" / "__init__.py").write_text("WHO = " + repr(directory.name) + "\n")
    (directory / "fastlib" / ("_speed" + source.suffix)).write_bytes(b"")
    (directory / f"uses_{directory.name}.py").write_text(
        "import fastlib\ndef create_app():\n    return fastlib.WHO\n"
    )


async def test_a_c_extension_that_another_location_has_is_refused_with_both_places_named(
    tmp_path: Path,
) -> None:
    for name in ("first", "second"):
        _fake_extension(tmp_path / name, Path("x.abi3.so"))
    loader = Loader([tmp_path / "first", tmp_path / "second"])
    code = loader.load("uses_first:create_app")
    with pytest.raises(SupervisorError) as caught:
        loader.load("uses_second:create_app")
    code.release()
    assert caught.value.reason == "ISOLATION_UNSUPPORTED"
    assert str(tmp_path / "first") in caught.value.message
    assert str(tmp_path / "second") in caught.value.message
    assert "PROCESS" in caught.value.message


async def test_a_vendored_c_extension_that_is_installed_as_well_is_refused(tmp_path: Path) -> None:
    (tmp_path / "msgspec").mkdir()
    (tmp_path / "msgspec" / "__init__.py").write_text("")
    (tmp_path / "msgspec" / "_core.abi3.so").write_bytes(b"")
    (tmp_path / "vendors_msgspec.py").write_text("import msgspec\ndef create_app():\n    return None\n")
    with pytest.raises(SupervisorError) as caught:
        Loader([tmp_path]).load("vendors_msgspec:create_app")
    assert caught.value.reason == "ISOLATION_UNSUPPORTED"
    assert "msgspec" in caught.value.message


async def test_django_beside_others_is_refused_with_the_reason(apps: Path) -> None:
    with pytest.raises(SupervisorError) as caught:
        Loader([apps / "django_project"]).load("mysite.wsgi:application")
    assert caught.value.reason == "ISOLATION_UNSUPPORTED"
    assert "Django" in caught.value.message


async def test_a_directory_an_app_adds_to_the_path_is_searched_for_it_alone(tmp_path: Path) -> None:
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "only_here.py").write_text("WORD = 'found'\n")
    (tmp_path / "extends_path.py").write_text(
        "import os, sys\n"
        "sys.path.insert(0, os.path.join(os.path.dirname(__file__), 'extra'))\n"
        "from only_here import WORD\n"
        "def create_app(): ...\n"
    )
    loader = Loader([tmp_path])
    code = loader.load("extends_path:create_app")
    assert code._target.__globals__["WORD"] == "found"
    assert str(tmp_path / "extra") not in sys.path
    with pytest.raises(ModuleNotFoundError):
        __import__("only_here")
    code.release()
    loader.close()
