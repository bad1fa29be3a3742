"""Which alerts fire for what is measured: Prometheus' own `promtool test rules`, on values that stay as they are."""

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from prometheus_client import Metric

RULES = Path(__file__).parents[2] / "charts" / "darktree" / "rules" / "lanes.yaml"
LASTS = "2h"  # longer than any alert waits
PROMTOOL = shutil.which("promtool")


def check_alert(name: str, fires: bool, metrics: Iterable[Metric], **labels: str) -> None:
    """Raise AssertionError unless the alert fires, or does not, once the samples with these labels have lasted."""
    assert PROMTOOL is not None
    series = [
        {"series": f"{sample.name}{_braces(sample.labels)}", "values": f"{sample.value}x130"}
        for metric in metrics
        for sample in metric.samples
        if labels.items() <= sample.labels.items()
    ]
    assert series, f"nothing is measured of {labels}"
    expression = f'count(ALERTS{{alertstate="firing", alertname=~"{name}"}}) > bool 0'
    wanted = {
        "expr": expression,
        "eval_time": LASTS,
        "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
    }
    tests = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [wanted]}],
    }
    with TemporaryDirectory(prefix="dt-") as folder:
        path = Path(folder) / "test.yaml"
        path.write_text(yaml.safe_dump(tests))
        done = subprocess.run(
            [PROMTOOL, "test", "rules", str(path)], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stdout + done.stderr


def _braces(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
