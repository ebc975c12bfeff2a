"""The shipped dashboard, alert rules and systemd units parse, and name metrics that exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from runtime_node import metrics as node_metrics
from runtime_node.settings import METRICS
from services.control_plane.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "compose/grafana/dashboard.json").read_text())
ALERTS = yaml.safe_load((ROOT / "compose/grafana/alerts.yaml").read_text())
UNITS = sorted((ROOT / "compose/systemd").glob("*.service"))
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]] + [
    rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]
]


def known_metrics() -> set[str]:
    known = {f"appsupervisor_app_{name}_total" for name in node_metrics.COUNTERS}
    known |= {f"appsupervisor_app_{name}" for name in node_metrics.GAUGES}
    known |= {"appsupervisor_app_loop_lag_seconds", "appsupervisor_app_request_latency_seconds"}
    own = (ROOT / "runtime_node/metrics.py").read_text() + (
        ROOT / "services/control_plane/metrics.py"
    ).read_text()
    words = set(re.findall(r'"(?:appsupervisor_node_)?(\w+)",? ', own)) | set(re.findall(r"_(\w+)\"", own))
    for word in words:
        known |= {
            f"appsupervisor_{part}_{word}{end}"
            for part in ("node", "control_plane")
            for end in ("", "_total")
        }
    return known


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_asks_for_metrics_that_exist(expression: str) -> None:
    named = set(re.findall(r"appsupervisor_\w+", expression))
    assert named
    assert named <= known_metrics()
    assert expression.count("(") == expression.count(")")


def test_what_is_scraped_is_where_the_programs_serve_metrics_by_default() -> None:
    config = yaml.safe_load((ROOT / "compose/grafana/prometheus.yml").read_text())
    targets = {
        job["job_name"]: [target for static in job["static_configs"] for target in static["targets"]]
        for job in config["scrape_configs"]
    }
    assert targets == {
        "appsupervisor-control-plane": [Settings.model_fields["metrics_listen"].default],
        "appsupervisor-node": [str(METRICS)],
    }
    for name in config["rule_files"]:
        assert (ROOT / "compose/grafana" / name).is_file()


def test_each_alert_says_what_to_do() -> None:
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["what_to_do"]
            assert rule["labels"]["severity"] in {"info", "warning", "critical"}


@pytest.mark.tool("systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_one_that_systemd_takes(unit: Path, tmp_path: Path) -> None:
    own = tmp_path / unit.name.replace("@", "@node-1")
    shutil.copy(unit, own)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(own)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert unit.name.replace("@", "@node-1") not in checked.stderr
