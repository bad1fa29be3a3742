"""Gathers the console's icons into one file: `python scripts/icons.py FOLDER`, the icons of lucide-static, unpacked."""

import re
import sys
from pathlib import Path

NAMES = (
    "calculator", "chart-column", "check", "circle-alert", "circle-check", "copy", "credit-card", "download",
    "external-link", "file-text", "gauge", "house", "inbox", "key-round", "log-out", "menu", "scroll-text", "server",
    "shield", "shield-check", "users", "wallet", "x",
)  # fmt: skip
TARGET = Path(__file__).parents[1] / "services/billing/darktree_billing/console/templates/icons.svg"


def sprite(folder: Path) -> str:
    """Return one document with a symbol for each icon."""
    symbols = []
    for name in NAMES:
        drawing = (folder / f"{name}.svg").read_text()
        shapes = re.search(r"<svg[^>]*>(.*)</svg>", drawing, re.DOTALL)
        assert shapes is not None, name
        inner = "".join(line.strip() for line in shapes[1].splitlines())
        symbols.append(f'<symbol id="{name}" viewBox="0 0 24 24">{inner}</symbol>')
    attributes = (
        'xmlns="http://www.w3.org/2000/svg" fill="none" stroke="currentColor" stroke-width="1.75" '
        'stroke-linecap="round" stroke-linejoin="round"'
    )
    return f"<svg {attributes}>\n" + "\n".join(symbols) + "\n</svg>\n"


if __name__ == "__main__":
    TARGET.write_text(sprite(Path(sys.argv[1])))
