"""What the image is installed from is a part of what the tests ran with, and its bill of materials says all of it."""

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def packages(name: str) -> dict[str, str]:
    """Return what a lock says of each package, by its name."""
    blocks = re.split(r"\n(?=[a-z])", (ROOT / name).read_text().strip())
    return {re.split(r"[\[=]", block)[0]: block for block in blocks}


def bill() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "scripts" / "sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: dict[str, Any] = module.bill()
    return made


def test_the_images_lock_is_a_part_of_the_projects_lock_to_the_hash() -> None:
    everything, image = packages("requirements.lock"), packages("requirements.image.lock")
    assert {name: everything.get(name) for name in image} == image, "run make lock"


def test_the_images_lock_has_what_runs_and_not_what_only_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[>=<~! ]", requirement)[0] for requirement in requirements}

    image = set(packages("requirements.image.lock"))
    assert names(project["dependencies"]) <= image
    assert not image & {"pytest", "mypy", "ruff", "hypothesis", "playwright", "kubernetes-validate", "openai"}


def test_the_bill_of_materials_names_every_package_with_its_version_and_files_hashes() -> None:
    components = {component["name"]: component for component in bill()["components"]}
    image = packages("requirements.image.lock")
    assert set(components) == set(image)
    for name, block in image.items():
        version = re.search(r"==([^ ;\\]+)", block)
        assert version is not None
        assert components[name]["purl"] == f"pkg:pypi/{name}@{version[1]}"
        hashes = [each["value"] for each in components[name]["properties"]]
        assert hashes == re.findall(r"sha256:([0-9a-f]{64})", block)
    assert bill() == bill()


def test_the_images_process_is_nobodys_and_every_stage_stands_on_a_base_that_can_be_chosen() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert set(bases) == {"${BASE}", "dependencies"}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored, "only what is named gets into the image"
