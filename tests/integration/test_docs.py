"""The pages that a stranger reads lead somewhere: every relative link and anchor in them exists."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}: there is no such heading"


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 135


def pictures() -> ModuleType:
    """Return the program that makes the pictures."""
    spec = importlib.util.spec_from_file_location("pictures", ROOT / ".ci/pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_each_picture_is_made_from_a_scene_and_stands_on_a_page() -> None:
    there = {path.stem for path in (ROOT / "docs/pictures").iterdir()}
    assert there == set(pictures().SCENES)
    named = {Path(link).stem for page in PAGES for link in links(page) if link.endswith(".svg")}
    assert there == named


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_pictures_can_be_made_from_a_running_stack(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / ".ci/pictures.py"), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert {path.stem for path in tmp_path.iterdir()} == set(pictures().SCENES)
