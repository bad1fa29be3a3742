"""docs/ledger-format.md is enough to write a verifier: one in another language agrees, on the vectors and for real."""

import importlib.util
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from darktree_kit import notes
from darktree_kit.db import connect
from darktree_ledger.chain import VERSIONS
from darktree_ledger.checkpoints import open_checkpoint, trusted_keys
from darktree_ledger.client import LedgerClient
from darktree_ledger.receipts import Receipt, check_receipt
from darktree_ledger.sealing import Log, take_lock

ROOT = Path(__file__).resolve().parents[2]
FORMAT = ROOT / "docs" / "ledger-format.md"
VECTORS = ROOT / "docs" / "ledger-vectors.json"
VERIFIER = Path(__file__).with_name("verify.mjs")
KEY = notes.make_signer("darktree.dev/ledger/test")

Node = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def node() -> Node:
    """Runs the verifier that is written in JavaScript."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed: the independent verifier is not run")
    return lambda *words: subprocess.run(
        [found, str(VERIFIER), *map(str, words)], capture_output=True, text=True
    )


@pytest.fixture
async def log(database: Any) -> AsyncIterator[Log]:
    async with await connect(database.url_as("darktree_sealer")) as connection:
        assert await take_lock(connection)
        yield await Log.open(connection, [KEY])


def test_the_vectors_are_what_the_code_makes() -> None:
    spec = importlib.util.spec_from_file_location("vectors_script", ROOT / "scripts" / "vectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert json.loads(VECTORS.read_text()) == module.vectors(), "run `make vectors`"


def test_the_format_names_every_field_in_the_order_in_which_it_is_hashed() -> None:
    rows = [line.split("|")[1].strip() for line in FORMAT.read_text().splitlines() if line.startswith("| `")]
    named = [row.strip("`") for row in rows]
    first = named.index("customer_id")
    assert tuple(named[first : first + len(VERSIONS[2][1])]) == VERSIONS[2][1]


def test_our_own_verifier_agrees_with_the_vectors() -> None:
    vectors = json.loads(VECTORS.read_text())
    keys = [notes.parse_verifier(vkey) for vkey in vectors["checkpoint"]["vkeys"]]
    for key in keys:
        assert open_checkpoint(vectors["checkpoint"]["note"], [key]).size == len(vectors["entries"])
        check_receipt(Receipt.model_validate(vectors["receipt"]), [key])
    rotation = vectors["rotation"]
    published = SimpleNamespace(vkey=rotation["new_vkey"], endorsement=rotation["endorsement"])
    assert trusted_keys(keys[:1], [published]) == keys


def test_a_verifier_in_another_language_agrees_with_the_vectors(node: Node) -> None:
    ran = node("vectors", VECTORS)
    assert ran.returncode == 0, ran.stderr
    assert "are right" in ran.stdout


def test_a_verifier_in_another_language_finds_whatever_is_changed(node: Node, tmp_path: Path) -> None:
    vectors = json.loads(VECTORS.read_text())
    changes: list[tuple[Any, Any, Any, str]] = [
        (vectors["entries"][1], "amount_nanos", 1, "entry 019353c6"),
        (vectors["entries"][5], "amount_nanos", vectors["entries"][5]["amount_nanos"] - 1, "entry 019353c6"),
        (vectors["entries"][0], "reason", None, "entry 019353c6"),
        (vectors["entries"][1], "recorded_at", "2026-11-23T18:38:23.000001Z", "entry 019353c6"),
        (vectors["tree"]["roots"][3], "root", "00" * 32, "root of 5"),
        (vectors["tree"]["inclusion"][3], "leaf_index", 3, "inclusion of 3"),
        (vectors["tree"]["consistency"][4], "first", 6, "consistency of 6"),
        (
            vectors["checkpoint"],
            "note",
            vectors["checkpoint"]["note"].replace("\n6\n", "\n7\n"),
            "the signature",
        ),
        (vectors["rotation"], "old_vkey", vectors["rotation"]["new_vkey"], "no signature"),
        (vectors["receipt"], "leaf_index", 4, "is not in the log"),
    ]
    for place, name, value, message in changes:
        kept, place[name] = place[name], value
        (tmp_path / "changed.json").write_text(json.dumps(vectors, ensure_ascii=False))
        ran = node("vectors", tmp_path / "changed.json")
        assert ran.returncode == 1
        assert message in ran.stderr
        place[name] = kept


async def test_a_verifier_in_another_language_agrees_with_a_real_receipt(
    ledger: Any, build: Any, log: Log, ledger_url: str, gateway_token: str, node: Node, tmp_path: Path
) -> None:
    ledger.customer("acme")
    placed = build.hold("acme", 10, 20)
    ledger.apply(placed, build.grant("acme", 1, reason="Gutschrift für den Ausfall"))
    ledger.one(build.settle(placed, 10, 15))
    await log.seal()
    await log.sign()
    client = LedgerClient(ledger_url, gateway_token)
    file = tmp_path / "receipt.json"
    for seq in (1, 2, 3):
        receipt = await client.receipt("acme", seq)
        assert receipt is not None
        file.write_text(receipt.model_dump_json())
        ran = node("receipt", file, KEY.verifier)
        assert ran.returncode == 0, ran.stderr
        assert f"entry {seq} of acme is number {seq - 1} of the 3" in ran.stdout
    assert receipt is not None
    file.write_text(receipt.model_copy(update={"leaf_index": 0}).model_dump_json())
    assert "is not in the log" in node("receipt", file, KEY.verifier).stderr
    await client.close()
