"""The log over HTTP: every entry is proven under every checkpoint, and every pair of checkpoints to each other."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from darktree_kit import notes
from darktree_kit.db import connect
from darktree_kit.errors import ApiError
from darktree_ledger import merkle
from darktree_ledger.checkpoints import Checkpoint, open_checkpoint
from darktree_ledger.client import LedgerClient
from darktree_ledger.proofs import parse_place
from darktree_ledger.receipts import ReceiptError, check_receipt
from darktree_ledger.sealing import Log, take_lock

KEY = notes.make_signer("darktree.dev/ledger/test")
PORTIONS = (1, 2, 200, 53, 300)


@pytest.fixture
async def log(database: Any) -> AsyncIterator[Log]:
    async with await connect(database.url_as("darktree_sealer")) as connection:
        assert await take_lock(connection)
        yield await Log.open(connection, [KEY])


@pytest.fixture
async def client(ledger_url: str, gateway_token: str) -> AsyncIterator[LedgerClient]:
    client = LedgerClient(ledger_url, gateway_token)
    yield client
    await client.close()


async def sealed(ledger: Any, build: Any, log: Log) -> list[Checkpoint]:
    """Record, seal and sign in portions; return the checkpoints."""
    checkpoints = []
    for number, portion in enumerate(PORTIONS):
        customer = ledger.customer(f"customer-{number % 2}", dollars=0)
        ledger.apply(*(build.grant(customer, 1) for _ in range(portion)))
        assert await log.seal() == portion
        assert await log.sign()
        assert log.checkpoint is not None
        checkpoints.append(log.checkpoint)
    return checkpoints


async def test_every_entry_and_every_pair_of_checkpoints_is_proven(
    ledger: Any, build: Any, log: Log, client: LedgerClient
) -> None:
    checkpoints = await sealed(ledger, build, log)
    roots = {checkpoint.size: checkpoint.root for checkpoint in checkpoints}
    entries = ledger.admin.execute(
        """SELECT customer_id, seq, e.hash, s.position
           FROM ledger.entry e JOIN ledger.sealed s USING (customer_id, seq)"""
    ).fetchall()
    assert len(entries) == sum(PORTIONS)

    at_once = asyncio.Semaphore(16)  # a slow machine answers all of them, but not within one call's time

    async def must_be_proven(customer_id: str, seq: int, leaf: bytes, position: int, *, size: int) -> None:
        async with at_once:
            found = await client.inclusion(customer_id, seq, size)
        proof = [bytes.fromhex(value) for value in found.proof]
        assert (found.leaf_index, found.tree_size, found.leaf_hash) == (position, size, leaf.hex())
        assert merkle.verify_inclusion(leaf, position, size, proof, roots[size])

    await asyncio.gather(
        *(must_be_proven(*entry, size=size) for entry in entries for size in roots if entry[3] < size)
    )
    for first in roots:
        for second in (size for size in roots if size >= first):
            proof = [bytes.fromhex(value) for value in (await client.consistency(first, second)).proof]
            assert merkle.verify_consistency(first, second, proof, roots[first], roots[second])


async def test_a_monitor_follows_the_log_from_its_tiles_without_a_token(
    ledger: Any, build: Any, log: Log, ledger_url: str
) -> None:
    checkpoints = await sealed(ledger, build, log)
    async with httpx.AsyncClient(base_url=f"{ledger_url}/log") as public:
        newest = await public.get("/checkpoint")
        assert newest.headers["cache-control"] == "no-cache"
        assert open_checkpoint(newest.text, [KEY.verifier]) == checkpoints[-1]
        for checkpoint in checkpoints:
            answer = await public.get(f"/checkpoints/{checkpoint.size}")
            assert open_checkpoint(answer.text, [KEY.verifier]) == checkpoint
            assert "immutable" in answer.headers["cache-control"]
        whole, rest = divmod(checkpoints[-1].size, merkle.TILE_WIDTH)
        paths = [f"/tile/0/{index:03}" for index in range(whole)] + [f"/tile/0/{whole:03}.p/{rest}"]
        answers = [await public.get(path) for path in paths]
        assert all("immutable" in answer.headers["cache-control"] for answer in answers)
        leaves = [
            answer.content[start : start + 32]
            for answer in answers
            for start in range(0, len(answer.content), 32)
        ]
        assert len(leaves) == checkpoints[-1].size
        assert merkle.root(leaves) == checkpoints[-1].root
        subtrees = (await public.get(f"/tile/1/000.p/{whole}")).content
        assert subtrees == b"".join(merkle.root(leaves[n * 256 : n * 256 + 256]) for n in range(whole))
        keys = (await public.get("/keys")).json()
        assert [(key["vkey"], key["endorsement"], key["first_size"]) for key in keys] == [
            (str(KEY.verifier), None, 0)
        ]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/log/tile/0/000", 404),
        ("/log/tile/0/000.p/256", 404),
        ("/log/tile/0/000.p/0", 404),
        ("/log/tile/0/0", 404),
        ("/log/tile/0/x000/001", 404),
        ("/log/tile/8/000", 400),
        ("/log/tile/-1/000", 400),
        ("/log/tile/entries/000", 400),
        ("/log/checkpoint", 404),
        ("/log/checkpoints/7", 404),
        ("/log/checkpoints/0", 400),
    ],
)
async def test_what_the_log_does_not_have_is_refused(ledger_url: str, path: str, status: int) -> None:
    async with httpx.AsyncClient() as public:
        assert (await public.get(ledger_url + path)).status_code == status


def test_the_paths_of_tiles_are_those_of_tlog_tiles() -> None:
    assert parse_place("000") == (0, 256)
    assert parse_place("067.p/12") == (67, 12)
    assert parse_place("x001/x234/067") == (1_234_067, 256)


async def test_proofs_are_only_for_services(ledger_url: str) -> None:
    async with httpx.AsyncClient(base_url=f"{ledger_url}/v1/proofs") as public:
        for path in (
            "/inclusion?customer_id=a&seq=1",
            "/consistency?first=1&second=1",
            "/receipt?customer_id=a&seq=1",
        ):
            assert (await public.get(path)).status_code == 401


async def test_what_is_not_covered_yet_has_no_proof_and_no_receipt(
    ledger: Any, build: Any, log: Log, client: LedgerClient
) -> None:
    ledger.customer("acme")
    assert await client.receipt("acme", 1) is None
    await log.seal()
    assert await client.receipt("acme", 1) is None
    await log.sign()
    assert await client.receipt("acme", 1) is not None
    assert await client.receipt("acme", 2) is None
    for refused in (client.inclusion("acme", 1, 2), client.consistency(1, 2), client.checkpoint(2)):
        with pytest.raises(ApiError) as caught:
            await refused
        assert caught.value.answer_code == "not_in_the_log"
    with pytest.raises(ApiError, match="first must not be more than second"):
        await client.consistency(2, 1)


async def test_a_receipt_proves_its_entry_and_nothing_else(
    ledger: Any, build: Any, log: Log, client: LedgerClient
) -> None:
    await sealed(ledger, build, log)
    receipt = await client.receipt("customer-1", 17)
    assert receipt is not None
    assert (receipt.entry.customer_id, receipt.entry.seq) == ("customer-1", 17)
    assert receipt.keys == [str(KEY.verifier)]
    assert check_receipt(receipt, [KEY.verifier]) == log.checkpoint
    changes: list[tuple[dict[str, Any], str]] = [
        ({"entry": receipt.entry.model_copy(update={"amount_nanos": 2})}, "is not what its hash says"),
        ({"leaf_index": receipt.leaf_index + 1}, "is not in the log"),
        ({"tree_size": receipt.tree_size - 1}, "the proof is for another checkpoint"),
        ({"inclusion_proof": receipt.inclusion_proof[:-1]}, "is not in the log"),
        ({"inclusion_proof": ["xyz"]}, "not hexadecimal"),
    ]
    for change, message in changes:
        with pytest.raises(ReceiptError, match=message):
            check_receipt(receipt.model_copy(update=change), [KEY.verifier])
    with pytest.raises(notes.UnverifiedNote):
        check_receipt(receipt, [notes.make_signer(KEY.name).verifier])
