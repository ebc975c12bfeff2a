"""The data directory of a node: one node at a time, one identity for ever."""

import os
import stat
import uuid
from pathlib import Path

import pytest

from runtime_node.data_directory import IDENTITY, DataDirectoryError, held


def test_an_identity_is_made_once_and_kept(tmp_path: Path) -> None:
    with held(tmp_path / "new" / "node") as first:
        assert str(uuid.UUID(first)) == first
        kept = tmp_path / "new" / "node" / IDENTITY
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    with held(tmp_path / "new" / "node") as again:
        assert again == first
    with held(tmp_path / "other") as other:
        assert other != first


def test_an_identity_that_was_cut_short_while_it_was_made_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / f".{IDENTITY}.new").write_text("3f")
    with held(tmp_path) as identity:
        assert uuid.UUID(identity)
    assert sorted(path.name for path in tmp_path.iterdir()) == [IDENTITY, "node.lock"]


@pytest.mark.parametrize("text", ["", "hello\n", "3F2504E0-4F89-41D3-9A0C-0305E82C3301\n", "x" * 10_000])
def test_an_identity_that_cannot_be_read_is_never_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / IDENTITY).write_text(text)
    with pytest.raises(DataDirectoryError, match="does not hold a node's identity"), held(tmp_path):
        pass
    assert (tmp_path / IDENTITY).read_text() == text


def test_an_identity_is_read_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(f"{uuid.uuid4()}\n")
    (tmp_path / IDENTITY).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataDirectoryError), held(tmp_path):
        pass


def test_a_second_node_is_refused_by_whatever_path_it_comes(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with held(tmp_path / "data"):
        for path in (tmp_path / "data", tmp_path / "link"):
            with pytest.raises(DataDirectoryError, match=f"process {os.getpid()}"), held(path):
                pass
    with held(tmp_path / "link"):
        pass


def test_what_is_no_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirectoryError, match="--data-dir"), held(tmp_path / "file"):
        pass
