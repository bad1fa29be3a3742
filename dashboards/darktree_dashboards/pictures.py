"""Draws the dashboards from their own JSON and a Prometheus' answers to it, as pictures for the documentation.

It is no Grafana: it asks what the panels ask, and draws what comes back in their places. `python -m
darktree_dashboards.pictures URL[,URL] DASHBOARDS FOLDER [SECONDS]` draws the last so many seconds; needs Chromium.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from PIL import Image

from darktree_dashboards import drawing
from darktree_dashboards.drawing import Line

SECONDS = 300
STEPS = 150
RATE_INTERVAL = "15s"
PAGE_WIDTH = 1500
ROW_PIXELS = 34
PICTURE_COLORS = 64
BROWSER_SECONDS = 300
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
STYLE = """
body { margin: 0; padding: 18px; background: #111217; color: #ccccdc; font: 13px/1.3 sans-serif; width: 1464px }
h1 { font-size: 19px; margin: 0 0 4px; font-weight: 500 } p { margin: 0 0 10px; color: #8e8e9b }
h2 { grid-column: 1 / -1; font-size: 14px; margin: 12px 0 0; font-weight: 500; color: #d8d9da }
main { display: grid; grid-template-columns: repeat(24, 1fr); gap: 8px }
section { background: #181b1f; border: 1px solid #24272d; border-radius: 3px; padding: 7px 9px; overflow: hidden }
h3 { font-size: 13px; font-weight: 500; margin: 0 0 4px }
svg { width: 100%; display: block } svg text { fill: #8e8e9b; font-size: 11px } .grid { stroke: #2a2d34 }
.legend { display: flex; flex-wrap: wrap; gap: 2px 12px; font-size: 11px; color: #a5a6b3 }
.legend i { display: inline-block; width: 12px; height: 3px; margin-right: 5px; vertical-align: middle }
.number { position: relative; height: 76px; border-radius: 3px; text-align: center }
.number b { position: absolute; inset: 0; font-size: 29px; font-weight: 500; line-height: 76px }
.number[style^=background] { color: #fff } .number svg { position: absolute; bottom: 0; height: 40px }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: 3px 8px; border-bottom: 1px solid #24272d }
.empty { color: #5b5c66; padding: 20px; text-align: center }
"""


def main() -> None:
    url, dashboards, folder, *rest = sys.argv[1:]
    end = time.time()
    start = end - (int(rest[0]) if rest else SECONDS)
    for file in sorted(Path(dashboards).glob("*.json")):
        board = json.loads(file.read_text())
        _photograph(page(board, url, start, end), _height(board), Path(folder) / f"dashboard-{file.stem}.png")


def page(board: dict[str, Any], url: str, start: float, end: float) -> str:
    """Return a dashboard as one HTML page."""
    parts = []
    for panel in board["panels"]:
        if panel["type"] == "row":
            parts.append(f"<h2>{escape(panel['title'])}</h2>")
            continue
        place = panel["gridPos"]
        style = f"grid-column: span {place['w']}; height: {place['h'] * ROW_PIXELS - 24}px"
        parts.append(
            f'<section style="{style}"><h3>{escape(panel["title"])}</h3>{_panel(panel, url, start, end)}</section>'
        )
    about = escape(str(board["description"]))
    head = f"<meta charset=utf-8><style>{STYLE}</style><h1>{escape(board['title'])}</h1><p>{about}</p>"
    return f"<!doctype html>{head}<main>{''.join(parts)}</main>"


def _panel(panel: dict[str, Any], url: str, start: float, end: float) -> str:
    if panel["type"] == "table":
        excluded = panel["transformations"][0]["options"]["excludeByName"]
        found = [
            one["metric"] | {"Value": one["value"][1]}
            for one in _ask(url, "query", query=_plain(panel["targets"][0]))
        ]
        names = ["namespace", "lane", "type", "reason", "Value"]
        return drawing.rows([name for name in names if not excluded.get(name)], found)
    lines = []
    for target in panel["targets"]:
        asked = _ask(
            url, "query_range", query=_plain(target), start=start, end=end, step=(end - start) / STEPS
        )
        lines += [
            Line(
                _legend(target.get("legendFormat", ""), one["metric"]),
                [(at, float(value)) for at, value in one["values"]],
            )
            for one in asked
        ]
    draw = drawing.number if panel["type"] == "stat" else drawing.lines
    return draw(panel, lines)


def _plain(target: dict[str, Any]) -> str:
    """Return a query as Grafana sends it: with its variables' values."""
    return str(target["expr"]).replace("$__rate_interval", RATE_INTERVAL).replace("$lane", ".*")


def _legend(pattern: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), pattern).strip()


def _ask(urls: str, what: str, **parameters: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for url in urls.split(","):
        with urlopen(f"{url}/api/v1/{what}?{urlencode(parameters)}", timeout=30) as answer:
            found += json.load(answer)["data"]["result"]
    return found


def _height(board: dict[str, Any]) -> int:
    rows = sum(panel["type"] == "row" for panel in board["panels"])
    lowest: int = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    return int(60 + rows * 14 + lowest * (ROW_PIXELS - 2))


def _photograph(content: str, height: int, file: Path) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is on PATH")
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        document = Path(folder) / "page.html"
        document.write_text(content)
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            f"--window-size={PAGE_WIDTH},{height}",
        ]
        command += [f"--user-data-dir={folder}/profile", f"--screenshot={file}", document.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=BROWSER_SECONDS)
    with Image.open(file) as picture:  # few colours make a small file
        picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=PICTURE_COLORS).save(file, optimize=True)


if __name__ == "__main__":
    main()
