"""What the programs do not load before they need it: users wait for each start, and tests make hundreds."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

STARTS = """
import sys

EVERYWHERE = ("alembic", "lark", "mako", "psycopg", "pygments", "rich", "typer", "watchfiles", "yaml")

def refuse(program, *modules):
    for name in modules:
        if name in sys.modules:
            print(f"{program} loads {name}")

import runtime_node.__main__, runtime_node.server, runtime_node.settings
refuse("a node", *EVERYWHERE, "pydantic", "sqlalchemy", "sqlmodel", "starlette", "uvicorn")
import services.gateway.__main__, services.gateway.server
refuse("a gateway", *EVERYWHERE, "sqlalchemy", "sqlmodel")
import services.control_plane.__main__, services.control_plane.server
from services.control_plane.rules.filters import compile_filter
from services.control_plane.store.sql_store import open_store
for _ in ("a new catalog", "the same again"):
    open_store(f"sqlite:///{sys.argv[1]}/catalog.db").close()
compile_filter("")
refuse("a control plane", *EVERYWHERE)
"""


def test_a_program_loads_nothing_that_its_start_does_not_need(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", STARTS, str(tmp_path)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
