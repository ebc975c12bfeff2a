"""The shipped configurations start programs that exist, with flags that they know."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.gateway.settings import Settings
from tests.conftest import RunTool

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose/compose.yaml").read_text())
PROGRAMS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
KUBERNETES = ROOT / "compose/kubernetes"
RESOURCES = [
    (path.name, resource)
    for path in sorted(KUBERNETES.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for resource in yaml.safe_load_all(path.read_text())
]


def pods() -> Iterator[tuple[str, Any]]:
    """Yield each pod's template with the name of what makes it."""
    for _, resource in RESOURCES:
        if resource["kind"] in {"Deployment", "StatefulSet"}:
            yield resource["metadata"]["name"], resource["spec"]["template"]["spec"]


def shipped_commands() -> Iterator[tuple[str, list[str]]]:
    for line in (ROOT / "compose/Procfile").read_text().splitlines():
        name, _, command = line.partition(": ")
        yield f"Procfile {name}", shlex.split(command)
    for name, service in PROGRAMS.items():
        if name != "environments":
            yield f"compose {name}", shlex.split(service["command"])
    for name, pod in pods():
        yield f"kubernetes {name}", pod["containers"][0]["command"]


@cache
def known_flags(module: str) -> frozenset[str]:
    shown = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}"},
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    )
    return frozenset(re.findall(r"--[a-z][a-z-]+", shown.stdout))


def flags_of(command: list[str]) -> dict[str, str]:
    """Return the flags of `python -m MODULE --flag value …`."""
    return dict(zip(command[3::2], command[4::2], strict=True))


@pytest.mark.parametrize(("name", "command"), list(shipped_commands()))
def test_a_shipped_command_uses_flags_that_exist(name: str, command: list[str]) -> None:
    python, minus_m, module = command[:3]
    assert (python, minus_m) == ("python", "-m")
    used = set(flags_of(command))
    assert used
    assert used <= known_flags(module)


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


@pytest.mark.parametrize(
    ("name", "command"), [shipped for shipped in shipped_commands() if "services.gateway" in shipped[1]]
)
def test_a_gateway_takes_its_flags_keeps_its_configuration_to_itself_and_is_believed(
    name: str, command: list[str]
) -> None:
    settings = Settings.from_command_line(command[3:])
    assert settings.xds_listen.startswith("127.0.0.1:")
    container = name.startswith("compose")
    nodes = [flags_of(other) for _, other in shipped_commands() if "runtime_node" in other]
    trusting = [flags["--trusted-proxy"] for flags in nodes if "--trusted-proxy" in flags]
    if container:
        own = COMPOSE["services"]["gateway"]["networks"]["default"]["ipv4_address"]
        (network,) = COMPOSE["networks"]["default"]["ipam"]["config"]
        assert ip_address(own) in ip_network(network["subnet"])
        assert ip_address(own) not in ip_network(network["ip_range"])
        assert trusting.count(own) == 3
    else:
        assert any(ip_network(trusted).num_addresses > 1 for trusted in trusting)


@pytest.mark.parametrize("unit", sorted(path.name for path in (ROOT / "compose/systemd").iterdir()))
def test_a_unit_starts_a_program_with_variables_that_it_reads(unit: str) -> None:
    text = (ROOT / "compose/systemd" / unit).read_text()
    (started,) = re.findall(r"^ExecStart=/usr/bin/env appsupervisor (\S+)$", text, re.MULTILINE)
    module = {
        "control-plane": "services.control_plane",
        "node": "runtime_node",
        "gateway": "services.gateway",
    }
    variables = set(re.findall(r"APPSUPERVISOR_([A-Z_]+)", text))
    flags = {flag.removeprefix("--").replace("-", "_").upper() for flag in known_flags(module[started])}
    own = flags if started != "gateway" else flags | {"TRUSTED_PROXY"}
    assert variables
    assert variables <= own


def test_containers_find_each_other_and_keep_their_data() -> None:
    services = COMPOSE["services"]
    environments = {"default", "edge"}
    for name, service in PROGRAMS.items():
        assert (ROOT / "compose" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert set(service.get("depends_on", ())) <= set(services)
        if "runtime_node" not in service["command"]:
            continue
        flags = flags_of(shlex.split(service["command"]))
        assert {address.split(":")[0] for address in flags["--control-plane"].split(",")} <= set(services)
        assert flags["--advertise"] == f"{name}:7401"
        assert flags["--node"] == name
        assert flags["--environment"] in environments
        volume, _, path = service["volumes"][0].partition(":")
        assert volume in COMPOSE["volumes"]
        assert path == flags["--data-dir"]
    created = re.search(r"environments create (\S+);", services["environments"]["command"])
    assert created
    assert environments == {"default", created[1]}


def test_only_this_machine_is_given_the_containers_ports() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_pods_are_given_longer_than_they_drain() -> None:
    for name, pod in pods():
        flags = flags_of(pod["containers"][0]["command"])
        drain = float(flags.get("--shutdown-timeout") or flags["--drain-timeout"])
        pause = (
            pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        )
        assert pod["terminationGracePeriodSeconds"] > pause + drain + 10, name


def test_pods_are_probed_where_they_listen_and_budgets_are_for_pods_that_exist() -> None:
    labels = set()
    for _, pod in pods():
        container = pod["containers"][0]
        flags = flags_of(container["command"])
        port = port_of(flags["--listen"])
        named = {one["containerPort"] for one in container["ports"]}
        if container["name"] == "gateway":
            # Envoy listens as soon as all apps are known; the program itself with its metrics.
            assert container["readinessProbe"]["tcpSocket"]["port"] == port
            assert container["livenessProbe"]["tcpSocket"]["port"] == port_of(flags["--metrics-listen"])
            assert named == {port, port_of(flags["--metrics-listen"])}
            continue
        assert {port} <= named
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["grpc"]["port"] == port
    for _, resource in RESOURCES:
        if resource["kind"] in {"Deployment", "StatefulSet"}:
            labels.add(resource["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"])
    for _, resource in RESOURCES:
        if resource["kind"] == "PodDisruptionBudget":
            assert resource["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] in labels
    nodes = next(r for _, r in RESOURCES if r["kind"] == "StatefulSet")
    services = {r["metadata"]["name"] for _, r in RESOURCES if r["kind"] == "Service"}
    flags = flags_of(nodes["spec"]["template"]["spec"]["containers"][0]["command"])
    assert nodes["spec"]["serviceName"] in services
    assert flags["--advertise"] == f"$(POD_NAME).{nodes['spec']['serviceName']}:7401"
    assert flags["--control-plane"].rpartition(":")[0] in services


@pytest.mark.tool("check-jsonschema")
def test_compose_yaml_is_what_the_published_schema_says(run_tool: RunTool) -> None:
    checked = run_tool(
        "check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(ROOT / "compose/compose.yaml")
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.tool("kustomize", "kubernetes-validate")
def test_kubernetes_takes_what_kustomize_builds(run_tool: RunTool, tmp_path: Path) -> None:
    built = run_tool("kustomize", "build", str(KUBERNETES))
    assert built.returncode == 0, built.stderr
    assert "image: registry.example.com/appsupervisor:latest" in built.stdout
    whole = tmp_path / "whole.yaml"
    whole.write_text(built.stdout)
    checked = run_tool("kubernetes-validate", "--strict", str(whole))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count(" passed ") + checked.stderr.count(" passed ") == len(RESOURCES)


def test_the_image_has_what_it_runs_compiled() -> None:
    # From its folder, that is, which nobody who runs it may write: not only what was installed from there.
    compiled = re.search(r"compileall -q (.+)$", (ROOT / "compose/Dockerfile").read_text(), re.MULTILINE)
    assert compiled
    assert {"services", "runtime_node", "compose"} <= set(compiled[1].split())


def test_the_image_copies_what_the_package_is_built_from() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "compose/Dockerfile").read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert {"pyproject.toml", "constraints.txt", "README.md"} <= sources
    built_from = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    for path in [*built_from["only-include"], *built_from["shared-scripts"]]:
        assert any(path == source or path.startswith(f"{source}/") for source in sources), path
    assert all((ROOT / source).exists() for source in sources)
