"""The digest of an app's code: the same for the same files, another for others, bounded, and read once."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime_node.loader import Loader, code_files
from runtime_node.loader.code_files import CodeFiles, CodeState

Write = Callable[[str, str], None]
LONG_AGO = 1_700_000_000


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read, in order."""
    names: list[str] = []
    real = code_files._read

    def noting(path: str, *rest: object) -> object:
        names.append(Path(path).name)
        return real(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(code_files, "_read", noting)
    return names


def age(directory: Path) -> None:
    """Let files be older than a file system's clock is coarse."""
    for path in directory.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))


def look(directory: Path | None, top: str = "shop") -> CodeState:
    state = CodeFiles().look(directory, top)
    assert state is not None
    return state


def test_equal_files_have_an_equal_digest_wherever_and_whenever_they_are(tmp_path: Path) -> None:
    digests = set()
    for place in ("one", "two"):
        (tmp_path / place / "shop").mkdir(parents=True)
        (tmp_path / place / "shop/__init__.py").write_text("from shop import web\n")
        (tmp_path / place / "shop/web.py").write_text("app = 1\n")
        age(tmp_path / "one")
        digests.add(look(tmp_path / place).digest)
    assert len(digests) == 1
    assert len(digests.pop()) == 64


@pytest.mark.parametrize(
    "change",
    [
        ("shop/web.py", "app = 2\n"),
        ("shop/late.py", "new = 1\n"),
        ("shop/templates/page.html", "<p>new</p>"),
        ("prices.py", "VAT = 2\n"),
        ("taxes/rates.json", "{}"),
    ],
    ids=lambda change: change[0],
)
def test_a_change_of_what_belongs_to_an_app_changes_its_digest(
    tmp_path: Path, write: Write, change: tuple[str, str]
) -> None:
    write("shop/__init__.py", "")
    write("shop/web.py", "import prices\napp = 1\n")
    write("shop/templates/page.html", "<p>old</p>")
    write("prices.py", "INSTALLED = ['taxes.rules']\n")
    write("taxes/rules.py", "")
    files = CodeFiles()
    before = files.look(tmp_path, "shop")
    write(*change)
    after = files.look(tmp_path, "shop")
    assert before is not None
    assert after is not None
    assert after.digest != before.digest
    assert after == look(tmp_path)  # what is remembered makes no difference


@pytest.mark.parametrize(
    "name",
    [
        "shop/__pycache__/web.cpython-311.pyc", "shop/app.db", "shop/.git/HEAD.py", "shop/notes.log",
        "shop/node_modules/x.json", "other.py", "more/x.py",
    ],
)  # fmt: skip
def test_what_does_not_belong_to_it_does_not(tmp_path: Path, write: Write, name: str) -> None:
    write("shop/__init__.py", "x = 1\n")
    before = look(tmp_path)
    write(name, "anything")
    assert look(tmp_path) == before


def test_a_file_is_read_once_for_each_state_of_it(tmp_path: Path, write: Write, read: list[str]) -> None:
    write("shop/__init__.py", "import prices\n")
    write("prices.py", "VAT = 1\n")
    later = 3600 * 1_000_000_000
    files = CodeFiles(lambda: time.time_ns() + later)
    first = files.look(tmp_path, "shop")
    assert read == ["__init__.py", "prices.py"]
    assert files.look(tmp_path, "shop") == first
    assert read == ["__init__.py", "prices.py"]
    write("prices.py", "VAT = 2\n")
    assert files.look(tmp_path, "shop") != first
    assert read == ["__init__.py", "prices.py", "prices.py"]


def test_what_was_just_written_may_be_written_again_without_a_sign_and_is_read_again(
    tmp_path: Path, write: Write, read: list[str]
) -> None:
    write("shop.py", "x = 1\n")
    files = CodeFiles(lambda: (tmp_path / "shop.py").stat().st_mtime_ns + 1_000_000)
    files.look(tmp_path, "shop")
    files.look(tmp_path, "shop")
    assert read == ["shop.py", "shop.py"]


def test_a_replacement_with_the_same_size_and_time_is_seen(tmp_path: Path, write: Write) -> None:
    write("shop.py", "x = 1\n")
    age(tmp_path)
    files = CodeFiles()
    before = files.look(tmp_path, "shop")
    write("coming", "x = 2\n")
    age(tmp_path)
    (tmp_path / "coming").rename(tmp_path / "shop.py")
    assert files.look(tmp_path, "shop") != before


def test_the_time_is_that_of_the_newest_file(tmp_path: Path, write: Write) -> None:
    write("shop/a.py", "")
    write("shop/b.py", "")
    age(tmp_path)
    os.utime(tmp_path / "shop/b.py", (LONG_AGO + 5, LONG_AGO + 5))
    assert look(tmp_path).modified == (LONG_AGO + 5) * 1_000_000_000


def test_a_link_to_a_release_means_what_it_points_at_now(tmp_path: Path, write: Write) -> None:
    write("v1/shop/web.py", "app = 1\n")
    write("v2/shop/web.py", "app = 2\n")
    (tmp_path / "current").symlink_to("v1")
    before = look(tmp_path / "current")
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("v2")
    assert look(tmp_path / "current").digest not in (before.digest, "")
    # A link to a folder above itself is not followed for ever.
    (tmp_path / "v2/shop/loop").symlink_to("..")
    assert look(tmp_path / "current").partial is False


@pytest.mark.parametrize(("bound", "value"), [("MOST_FILES", 3), ("MOST_BYTES", 30), ("MOST_ENTRIES", 4)])
def test_a_look_is_bounded_and_says_so(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch, read: list[str], bound: str, value: int
) -> None:
    for number in range(8):
        write(f"shop/m{number}.py", "x = 1234567\n")
    monkeypatch.setattr(code_files, bound, value)
    first = look(tmp_path)
    assert first.partial
    assert 1 < len(read) < 8
    assert look(tmp_path) == first


def test_what_is_remembered_is_bounded(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_files, "MOST_KNOWN", 2)
    files = CodeFiles()
    for name in ("a", "b", "c"):
        write(f"{name}.py", "")
        files.look(tmp_path, name)
    assert [top for _, top in files._known] == ["b", "c"]


def test_an_installed_package_has_the_name_and_version_that_it_came_with() -> None:
    state = look(None, "flask")
    assert state.installed
    assert state.distribution.lower().startswith("flask ")
    assert CodeFiles().look(None, "no_such_thing") is None


def test_a_loader_tells_the_code_of_an_entrypoint_by_its_own_rules(loader: Loader, write: Write) -> None:
    write("shop/web.py", "app = 1\n")
    state = loader.code_of("shop.web:app")
    assert state is not None
    assert not state.installed
    assert loader.code_of("no_such_thing:app") is None
