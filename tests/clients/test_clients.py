"""A client generated in each language takes an app through its whole life, and reads what goes wrong."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RunTool
from tests.e2e.stack import ROOT, Stack

HERE = Path(__file__).parent
PROTOS = ROOT / "protos"
SOURCES = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "appsupervisor").rglob("*.proto"))
BUILD = 480
"""Seconds for a first build, dependencies included, beside other work; a second one takes a fraction."""


def building(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that builds its client first."""
    return pytest.mark.slow(pytest.mark.timeout(BUILD + 120)(test))


@pytest.fixture
def imports(run_tool: RunTool, tmp_path: Path) -> Path:
    """Write the protos that ours import, and return their root."""
    target = tmp_path / "imports"
    written = run_tool.python(str(PROTOS / "generate.py"), "--imports", str(target))
    assert written.returncode == 0, written.stderr
    return target


def copy(language: str, target: Path) -> Path:
    """Copy a client's sources to where it is built: nothing is left in the tree."""
    return Path(shutil.copytree(HERE / language, target / language))


def protoc(run_tool: RunTool, imports: Path, *options: str) -> None:
    """Generate with protoc and its plugins."""
    generated = run_tool.python(
        "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"-I{imports}", *options, *SOURCES, cwd=PROTOS
    )
    assert generated.returncode == 0, generated.stderr


def build(run_tool: RunTool, *command: str, cwd: Path, **env: str) -> None:
    """Run a build and show what it said if it fails."""
    built = run_tool(*command, cwd=cwd, timeout=BUILD, **env)
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]


def makes_the_full_circle(run_tool: RunTool, stack: Stack, language: str, *command: str, **env: str) -> None:
    """Run a client and compare what it reports, step by step."""
    app_id = f"from-{language}"
    ran = run_tool(*command, stack.address, app_id, "notes:create_app", timeout=90, **env)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = {"domain": "appsupervisor.dev"}
    assert [json.loads(line) for line in ran.stdout.splitlines()] == [
        {"step": "created", "name": f"apps/{app_id}", "state": "RUNNING"},
        {"step": "watched", "name": f"apps/{app_id}"},
        {"step": "resumed", "name": f"apps/{app_id}", "displayName": "Changed"},
        {"step": "refused", "reason": "INVALID_FIELD", **told, "fields": ["app.entrypoint", "app_id"]},
        {"step": "deleted", "name": f"apps/{app_id}"},
        {"step": "gone", "reason": "APP_NOT_FOUND", **told, "fields": []},
    ]


def test_python(stack: Stack, run_tool: RunTool, imports: Path, tmp_path: Path) -> None:
    out = tmp_path / "gen"
    out.mkdir()
    protoc(run_tool, imports, f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}")
    client = copy("python", tmp_path) / "client.py"
    makes_the_full_circle(run_tool, stack, "python", sys.executable, str(client), PYTHONPATH=str(out))


@building
@pytest.mark.tool("go", "protoc-gen-go", "protoc-gen-go-grpc")
def test_go(stack: Stack, run_tool: RunTool, imports: Path, tmp_path: Path) -> None:
    folder = copy("go", tmp_path)
    protoc(
        run_tool, imports, f"--go_out={folder}", f"--go-grpc_out={folder}",
        "--go_opt=module=appsupervisor.dev", "--go-grpc_opt=module=appsupervisor.dev",
    )  # fmt: skip
    build(run_tool, "go", "build", "-o", "client", ".", cwd=folder)
    makes_the_full_circle(run_tool, stack, "go", str(folder / "client"))


@building
@pytest.mark.tool("mvn", "java")
def test_java(stack: Stack, run_tool: RunTool, tmp_path: Path) -> None:
    pom = str(copy("java", tmp_path) / "pom.xml")
    maven = ("mvn", "--quiet", "--batch-mode", "--file", pom)
    build(run_tool, *maven, f"-Dprotos={PROTOS}", "package", cwd=tmp_path)
    jar, libraries = tmp_path / "java/target/client.jar", tmp_path / "java/target/libraries/*"
    classpath = f"{jar}:{libraries}"
    makes_the_full_circle(
        run_tool, stack, "java", "java", "-cp", classpath, "dev.appsupervisor.example.Client"
    )


@building
@pytest.mark.tool("node", "npm")
def test_typescript(stack: Stack, run_tool: RunTool, imports: Path, tmp_path: Path) -> None:
    folder = copy("typescript", tmp_path)
    build(run_tool, "npm", "install", "--no-audit", "--no-fund", "--no-package-lock", cwd=folder)
    (folder / "src/gen").mkdir()
    others = [str(path.relative_to(imports)) for path in imports.glob("google/[!p]*/*.proto")]
    protoc(
        run_tool, imports, f"--plugin={folder}/node_modules/.bin/protoc-gen-es",
        f"--es_out={folder}/src/gen", "--es_opt=target=ts,import_extension=js", *others,
    )  # fmt: skip
    build(run_tool, "npm", "run", "build", cwd=folder)
    makes_the_full_circle(run_tool, stack, "typescript", "node", str(folder / "out/client.js"))


@building
@pytest.mark.tool("cargo")
def test_rust(stack: Stack, run_tool: RunTool, imports: Path, tmp_path: Path) -> None:
    folder = copy("rust", tmp_path)
    wrapped = tmp_path / "protoc"
    wrapped.write_text(f'#!/bin/sh\nexec {sys.executable} -m grpc_tools.protoc "$@"\n')
    wrapped.chmod(0o755)
    target = ROOT / ".cache/clients/rust"  # its dependencies take minutes, and are the same next time
    build(
        run_tool, "cargo", "build", "--quiet", cwd=folder,
        PROTOC=str(wrapped), PROTO_PATH=f"{PROTOS}:{imports}", CARGO_TARGET_DIR=str(target),
    )  # fmt: skip
    makes_the_full_circle(run_tool, stack, "rust", str(target / "debug/client"))
