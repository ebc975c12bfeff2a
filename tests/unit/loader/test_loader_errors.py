"""One test per way to fail: the reason, the sentence, and a traceback that starts in the app's code."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runtime_node.context import AppContext
from runtime_node.loader import Loader
from services.rpc.errors import SupervisorError
from tests.eventually import eventually

Write = Callable[[str, str], None]


def failed(loader: Loader, entrypoint: str) -> SupervisorError:
    with pytest.raises(SupervisorError) as caught:
        loader.load(entrypoint)
    return caught.value


async def build_failed(loader: Loader, entrypoint: str, context: AppContext) -> SupervisorError:
    code = loader.load(entrypoint)
    try:
        with pytest.raises(SupervisorError) as caught:
            await code.build(context, threads=1)
    finally:
        code.release()
    return caught.value


def test_a_missing_module_is_not_found(loader: Loader) -> None:
    error = failed(loader, "nowhere.to:app")
    assert error.reason == "ENTRYPOINT_MODULE_NOT_FOUND"
    assert "'nowhere'" in error.message
    assert "detail" not in error.metadata


def test_a_missing_submodule_is_not_found(loader: Loader, write: Write) -> None:
    write("shop/__init__.py", "")
    error = failed(loader, "shop.web:app")
    assert error.reason == "ENTRYPOINT_MODULE_NOT_FOUND"
    assert "'shop.web'" in error.message


@pytest.mark.parametrize(
    ("entrypoint", "hint"),
    [
        ("shop.py:app", "has the name of a module, without '.py'"),
        ("shopp:app", "did you mean shop?"),
        ("elsewhere:app", "or installed packages"),
    ],
)
def test_what_may_have_been_meant_by_a_missing_module_is_told(
    loader: Loader, write: Write, entrypoint: str, hint: str
) -> None:
    write("shop.py", "app = None\n")
    error = failed(loader, entrypoint)
    assert error.reason == "ENTRYPOINT_MODULE_NOT_FOUND"
    assert error.message.endswith(hint)


def test_a_missing_import_inside_the_app_is_the_apps_failure_with_its_traceback(
    loader: Loader, write: Write
) -> None:
    write("shop/__init__.py", "")
    write("shop/web.py", "\nimport redis_that_is_not_there\n")
    error = failed(loader, "shop.web:app")
    assert error.reason == "ENTRYPOINT_IMPORT_FAILED"
    assert "redis_that_is_not_there" in error.message
    detail = error.metadata["detail"]
    assert detail.splitlines()[1].strip().startswith('File "')
    assert 'shop/web.py", line 2' in detail.splitlines()[1]
    assert "importlib" not in detail
    assert "runtime_node" not in detail


def test_a_missing_module_of_the_app_is_named_as_its_author_wrote_it(loader: Loader, write: Write) -> None:
    write("shop/__init__.py", "import shop.modles")
    error = failed(loader, "shop:app")
    assert error.reason == "ENTRYPOINT_IMPORT_FAILED"
    assert "No module named 'shop.modles'" in error.message


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("1/0", "ZeroDivisionError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise BaseException('odd')", "BaseException: odd"),
        ("def broken(:", "SyntaxError"),
        (
            "class E(Exception):\n  def __str__(self): raise ValueError\nraise E",
            "E: <its message cannot be shown>",
        ),
        ("def f(): f()\nf()", "RecursionError"),
    ],
)
def test_whatever_an_app_raises_at_import_is_contained(
    loader: Loader, write: Write, source: str, says: str
) -> None:
    write("bad.py", source)
    error = failed(loader, "bad:app")
    assert error.reason == "ENTRYPOINT_IMPORT_FAILED"
    assert says in error.message
    assert len(error.metadata["detail"].encode()) <= 16 * 1024


def test_an_error_keeps_no_frame_of_the_app(loader: Loader, write: Write) -> None:
    write("bad.py", "1/0")
    error = failed(loader, "bad:app")
    assert error.__context__ is None
    assert error.__cause__ is None


def test_a_huge_traceback_keeps_its_beginning_and_its_end(loader: Loader, write: Write) -> None:
    write("bad.py", "def f(n):\n    raise ValueError('x' * 100_000 + 'END')\n" + "f(1)")
    detail = failed(loader, "bad:app").metadata["detail"]
    assert len(detail.encode()) <= 16 * 1024
    assert detail.startswith("Traceback")
    assert detail.endswith("END")


def test_a_missing_attribute_names_near_misses(loader: Loader, write: Write) -> None:
    write("shop.py", "def create_app(context): ...\nsecret = 1\n")
    error = failed(loader, "shop:creat_app")
    assert error.reason == "ENTRYPOINT_ATTRIBUTE_NOT_FOUND"
    assert "did you mean create_app?" in error.message


def test_a_missing_nested_attribute_names_where_it_was_looked_for(loader: Loader, write: Write) -> None:
    write("shop.py", "class site:\n    app = None\n")
    error = failed(loader, "shop:site.ap")
    assert error.reason == "ENTRYPOINT_ATTRIBUTE_NOT_FOUND"
    assert "shop:site has no attribute 'ap'" in error.message


def test_an_attribute_whose_reading_fails_is_the_apps_failure(loader: Loader, write: Write) -> None:
    write(
        "shop.py",
        "class Site:\n @property\n def app(self):\n  raise RuntimeError('no app')\nsite = Site()\n",
    )
    error = failed(loader, "shop:site.app")
    assert error.reason == "ENTRYPOINT_IMPORT_FAILED"
    assert "no app" in error.message


def test_what_is_not_an_app_is_refused_with_how_to_name_one(loader: Loader, write: Write) -> None:
    write("shop.py", "import types\napp = 3\nsub = types.ModuleType('sub')\nsub.create_app = 1\n")
    assert failed(loader, "shop:app").reason == "ENTRYPOINT_NOT_AN_APP"
    assert "such as create_app" in failed(loader, "shop:sub").message


async def test_a_factory_that_raises_shows_its_traceback_without_secrets(
    loader: Loader, write: Write, context: AppContext
) -> None:
    write(
        "shop.py",
        "def create_app(context):\n    raise ValueError(str(context.secrets) + context.database_url)\n",
    )
    error = await build_failed(loader, "shop:create_app", context)
    assert error.reason == "APP_FACTORY_FAILED"
    assert 'shop.py", line 2, in create_app' in error.metadata["detail"]
    assert "runtime_node" not in error.metadata["detail"]
    for text in (error.message, error.metadata["detail"]):
        assert "hunter2" not in text
        assert "pa55word" not in text


@pytest.mark.parametrize(
    "text",
    [
        "repr(context.secrets['KEY'])",
        "context.secrets['KEY']",
        "'x' * 280 + context.secrets['KEY'].splitlines()[1]",
        "'x' * 12200 + context.secrets['KEY'].splitlines()[1] + 'x' * 12150",
    ],
)
async def test_neither_another_form_nor_a_cut_piece_of_a_secret_is_told(
    loader: Loader, write: Write, context: AppContext, text: str
) -> None:
    key = "-----BEGIN KEY-----\n" + "hunter2/" * 30 + "\n-----END KEY-----\n"
    write("shop.py", f"def create_app(context):\n    raise ValueError({text})\n")
    error = await build_failed(loader, "shop:create_app", replace(context, secrets={"KEY": key}))
    for told in (error.message, error.metadata["detail"]):
        assert "ValueError" in told
        assert "hunter" not in told


def test_the_only_app_of_a_process_is_told_no_secret_of_its_import(tmp_path: Path) -> None:
    (tmp_path / "only.py").write_text("import os\nint('x' * 260 + os.environ['KEY'])\n")
    key = "hunter2/" * 30
    loader = Loader([tmp_path], plain=True, secrets=[key])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEY", key)
        patch.setattr(sys, "path", [*sys.path])
        error = failed(loader, "only:app")
    assert "invalid literal" in error.message
    assert "hunter" not in error.message + error.metadata["detail"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return None", "returned None"),
        ("return 3", "builtins.int"),
        ("return create_app", "factory again"),
        ("import sys; sys.exit('no')", "SystemExit: no"),
        ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
        ("raise StopIteration", "StopIteration"),
    ],
)
@pytest.mark.parametrize("define", ["def", "async def"])
async def test_a_factory_that_makes_no_app_fails_with_what_it_did(
    loader: Loader, write: Write, context: AppContext, define: str, body: str, says: str
) -> None:
    write("shop.py", f"{define} create_app(context):\n    {body}\n")
    error = await build_failed(loader, "shop:create_app", context)
    assert error.reason == "APP_FACTORY_FAILED"
    assert says in error.message


async def test_a_slow_factory_does_not_hold_up_the_loop_and_is_broken_off_when_cancelled(
    loader: Loader, write: Write, context: AppContext
) -> None:
    write("shop.py", "def create_app(context):\n    while True:\n        pass\n")
    code = loader.load("shop:create_app")
    building = asyncio.create_task(code.build(context, threads=1))
    for _ in range(20):
        await asyncio.sleep(0)
    before = {t for t in threading.enumerate() if t.name == "build demo"}
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    await eventually(lambda: not any(thread.is_alive() for thread in before))
    code.release()


@pytest.mark.parametrize(
    ("source", "entrypoint", "kind"),
    [
        ("def create_app(context): ...", "shop:create_app", "factory"),
        ("async def create_app(context): ...", "shop:create_app", "factory"),
        ("def create_app(config=None): ...", "shop:create_app", "bare factory"),
        ("def create_app(config=None, context=None): ...", "shop:create_app", "factory"),
        ("async def app(scope, receive, send): ...", "shop:app", "app"),
        ("def app(environ, start_response): ...", "shop:app", "app"),
        ("import x\napp = x.FastAPI()", "shop:app", "app"),
        ("if 1:\n    app: object = Make()\n", "shop:app", "app"),
        ("from other import create_app as make", "shop:make", "factory"),
        ("def one(): ...\nmake = one", "shop:make", "bare factory"),
        ("raise SystemExit", "shop:app", None),
        ("app = partial(f, 1)", "shop:app", None),
        ("@cached\ndef create_app(context): ...", "shop:create_app", None),
        ("class App: ...", "shop:App", None),
        ("syntax error", "shop:app", None),
    ],
)
def test_the_kind_of_an_entrypoint_is_told_without_running_it(
    loader: Loader, write: Write, source: str, entrypoint: str, kind: str | None
) -> None:
    write("shop.py", source)
    write("other.py", "raise SystemExit\ndef create_app(context): ...\n")
    assert loader.kind_of(entrypoint) == kind
