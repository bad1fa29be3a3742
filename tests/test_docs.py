"""What the documents say exists, exists."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import typer.main

from darktree_cli.main import app

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    path
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])
    if not path.name.endswith(".tmp.md")
]


def commands() -> set[str]:
    """Return every command as it is typed, without `darktree`: `up`, `keys`, `keys create`."""
    found = set()
    root = typer.main.get_group(app)
    for name, command in root.commands.items():
        found.add(name)
        found |= {f"{name} {below}" for below in getattr(command, "commands", {})}
    return found


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        named = set(re.findall(r"(?:`|^ {4}|^)make ([a-z][a-z0-9-]*)", path.read_text(), re.MULTILINE))
        assert named <= targets, f"{path.name} names {named - targets}"


def test_every_command_that_a_document_names_exists() -> None:
    known = commands()
    for path in DOCUMENTS:
        for line in re.findall(r"(?:`|^ {4}|^)darktree ([a-z][a-z ]*)", path.read_text(), re.MULTILINE):
            group, *rest = line.split()
            assert group in known, f"{path.name}: darktree {line}"
            is_group = any(command.startswith(group + " ") for command in known)
            assert not is_group or not rest or f"{group} {rest[0]}" in known, f"{path.name}: darktree {line}"


def test_the_command_lines_readme_names_every_command() -> None:
    text = (ROOT / "cli" / "README.md").read_text()
    named = [command for command in commands() if command.split()[-1] not in text]
    assert not named, f"cli/README.md does not name {named}"


def test_the_openapi_documents_are_what_the_services_say() -> None:
    for service, description in script("openapi").descriptions().items():
        written = json.loads((ROOT / "docs" / "openapi" / f"{service}.json").read_text())
        assert written == json.loads(json.dumps(description)), (
            f"run `make openapi`: {service}.json is not current"
        )


def test_the_reference_has_every_setting_and_every_metric() -> None:
    written = (ROOT / "docs" / "reference.md").read_text()
    assert written == script("reference").reference(), (
        "run `make reference`: docs/reference.md is not current"
    )
