"""Writes the dashboards into the chart's folder, which this names. Run by `make dashboards`."""

import sys
from pathlib import Path

from darktree_dashboards.boards import documents


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for name, document in documents().items():
        (folder / f"{name}.json").write_text(document)


main()
