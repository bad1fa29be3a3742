"""Writes the image's bill of materials, as CycloneDX (1.6, JSON), from the lock that the image is installed from.

    python scripts/sbom.py build/sbom.json

It is made from nothing but the lock and pyproject.toml, so the same sources have the same bill. What the base image
brings is the base's own: scan the image for it.
"""

import json
import re
import sys
import tomllib
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.image.lock"
_PINNED = re.compile(r"([a-z0-9._-]+)(?:\[[a-z,_-]+\])?==([^ ;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def bill() -> dict[str, Any]:
    """Return the document."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = LOCK.read_text()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, text)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": project["name"],
                "name": project["name"],
                "version": project["version"],
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": [_component(block) for block in re.split(r"\n(?=[a-z])", text.strip())],
    }


def _component(block: str) -> dict[str, Any]:
    """One package. Its files' hashes stand in properties: `hashes` would say that they are all of one file."""
    pinned = _PINNED.match(block)
    assert pinned is not None, block
    name, version = pinned.groups()
    purl = f"pkg:pypi/{name}@{version}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "properties": [{"name": "darktree:sha256", "value": value} for value in _HASH.findall(block)],
    }


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(bill(), indent=2) + "\n")
    print(f"{target}: {len(bill()['components'])} packages")
