"""A real Prometheus beside what a test runs: what it scrapes, its rules at sixty times the speed, what it then says."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import yaml

from darktree_cli.ports import Ports

ROOT = Path(__file__).parents[2]
RULES = ROOT / "charts" / "darktree" / "rules"
START_SECONDS = 60
SPEED = 60  # a minute is a second
MOST_WAIT_SECONDS = 5  # of any alert's `for`: a fault that has to last is no different from one that lasts
SCRAPE = "1s"
WHILE_SECONDS = 3
BINARY = shutil.which("prometheus")
ABSENT = "prometheus is not on PATH: apt-get install prometheus"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Alert = tuple[str, Mapping[str, str]]


def fast(rules: str) -> str:
    """Return rules that look back and compare ages sixty times faster, and wait little; what they ask is the same."""
    document = yaml.safe_load(rules)
    for group in document["groups"]:
        for rule in group["rules"]:
            rule["expr"] = re.sub(r"\[(\d+)([smhd])\]", lambda found: f"[{_fast(found)}]", rule["expr"])
            if re.search(r"_seconds(?!_)|time\(\)", rule["expr"]) and "alert" in rule:
                # Ages are compared with 60 seconds or more; smaller numbers count something.
                rule["expr"] = re.sub(
                    r"(?<=[<>] )(\d+ \* \d+|\d{2,})(?= |$)",
                    rf"(\1) / {SPEED}",
                    rule["expr"],
                    flags=re.MULTILINE,
                )
            if "for" in rule:
                rule["for"] = re.sub(r"(\d+)([smhd])", _soon, rule["for"])
    return str(yaml.safe_dump(document))


def _fast(found: re.Match[str]) -> str:
    return f"{_seconds(found)}s"


def _soon(found: re.Match[str]) -> str:
    return f"{min(_seconds(found), MOST_WAIT_SECONDS)}s"


def _seconds(found: re.Match[str]) -> int:
    return max(1, int(found[1]) * _SECONDS[found[2]] // SPEED)


@dataclass
class Prometheus:
    """A running one."""

    url: str
    started_at: float

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return what is now."""
        return self._ask("query", query=expression)["result"]  # type: ignore[no-any-return]

    def ever(self, expression: str, *, step_seconds: int = 1) -> list[dict[str, Any]]:
        """Return what was at any time since this began, a series each."""
        now = time.time()
        found = self._ask(
            "query_range", query=expression, start=self.started_at, end=now, step=str(step_seconds)
        )
        return found["result"]  # type: ignore[no-any-return]

    def told(self, expression: str) -> bool:
        """Return whether there was a number, for a while, since this began: a NaN is drawn as nothing."""
        found = self.ever(expression, step_seconds=WHILE_SECONDS)
        return any(value != "NaN" for series in found for _, value in series["values"])

    def value(self, expression: str) -> float | None:
        """Return the value of the only series there is, None when there is none."""
        found = self.query(expression)
        assert len(found) < 2, found
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> list[Alert]:
        """Return the alerts that fire, each with its labels."""
        alerts = self._ask("alerts")["alerts"]
        return [
            (alert["labels"]["alertname"], alert["labels"]) for alert in alerts if alert["state"] == "firing"
        ]

    def fires(self, name: str, **labels: str) -> bool:
        return any(alert == name and labels.items() <= found.items() for alert, found in self.firing())

    def targets(self) -> dict[str, str]:
        """Return the health of everything that is scraped, by address."""
        found = self._ask("targets", state="active")["activeTargets"]
        return {target["labels"]["instance"]: target["health"] for target in found}

    def _ask(self, what: str, **parameters: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{what}", params=parameters, timeout=30)
        document = answer.json()
        assert document["status"] == "success", document
        return document["data"]


@contextmanager
def scraping(targets: Path) -> Iterator[Prometheus]:
    """Run one that scrapes what this file names, with every rule of the chart."""
    assert BINARY is not None
    with TemporaryDirectory(prefix="dt-") as made, Ports() as ports:
        folder = Path(made)
        (folder / "rules").mkdir()
        for file in RULES.glob("*.yaml"):
            (folder / "rules" / file.name).write_text(fast(file.read_text()))
        config = {
            "global": {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": SCRAPE},
            "rule_files": [str(folder / "rules" / "*.yaml")],
            "scrape_configs": [{"job_name": "darktree", "file_sd_configs": [{"files": [str(targets)]}]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        address = f"127.0.0.1:{ports.free()}"
        command = [
            BINARY,
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            "--log.level=warn",
        ]
        with (folder / "log").open("wb") as log:
            popen = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _until_ready(f"http://{address}", lambda: popen.poll() is None, folder / "log")
            yield Prometheus(f"http://{address}", time.time())
        finally:
            popen.terminate()
            popen.wait(30)


def _until_ready(url: str, lives: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/-/ready", timeout=5).status_code == 200:
                return
        assert lives(), log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
