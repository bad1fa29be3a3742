"""Checkpoints reach every place that the operator chose, and nothing that happens there stops sealing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from darktree_ledger import sealer_metrics as metrics
from darktree_ledger.anchors import (
    LATEST,
    AnchorError,
    Anchors,
    Folder,
    Store,
    Target,
    object_name,
    target_of,
)
from darktree_ledger.s3 import Credentials

DEADLINE_SECONDS = 10


class ObjectStore:
    """A server that keeps what is PUT, or refuses for a while."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[str, str | None]] = {}
        self.headers: dict[str, Headers] = {}
        self.refusals = 0

    def app(self) -> Starlette:
        async def put(request: Request) -> Response:
            if self.refusals > 0:
                self.refusals -= 1
                return Response("not now", 503)
            content = (await request.body()).decode()
            self.headers[request.path_params["name"]] = request.headers
            self.objects[request.path_params["name"]] = (content, request.headers.get("authorization"))
            return Response(status_code=201)

        async def get(request: Request) -> Response:
            found = self.objects.get(request.path_params["name"])
            return Response(found[0]) if found else Response(status_code=404)

        return Starlette(
            routes=[
                Route("/bucket/{name}", put, methods=["PUT"]),
                Route("/bucket/{name}", get, methods=["GET"]),
            ]
        )


@asynccontextmanager
async def anchoring(*targets: Target) -> AsyncIterator[Anchors]:
    anchors = Anchors(targets, backoff_seconds=0.01)
    anchors.start()
    yield anchors
    await anchors.close()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not true():
            await asyncio.sleep(0.01)


def failures(target: Target) -> float:
    return float(metrics.ANCHOR_FAILURES.labels(target.name)._value.get())


async def test_a_folder_keeps_every_checkpoint_and_the_newest_once_more(tmp_path: Path) -> None:
    folder = target_of(f"file://{tmp_path}/an%20anchor", {})
    async with anchoring(folder) as anchors:
        for size in (5, 70):
            anchors.add(size, f"note of {size}")
        await until(lambda: metrics.ANCHORED_SIZE.labels(folder.name)._value.get() == 70)
    kept = {file.name: file.read_text() for file in (tmp_path / "an anchor").iterdir()}
    assert kept == {object_name(5): "note of 5", object_name(70): "note of 70", LATEST: "note of 70"}


async def test_a_folder_never_replaces_a_checkpoint_by_another_of_its_size(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    await folder.put(5, "note of 5")
    await folder.put(5, "note of 5")
    with pytest.raises(AnchorError, match="the log was forked"):
        await folder.put(5, "another note of 5")
    assert (tmp_path / LATEST).read_text() == "note of 5"


async def test_an_object_store_gets_every_checkpoint_with_the_operators_header(
    serve: Callable[[ASGIApp], str],
) -> None:
    kept = ObjectStore()
    store = target_of(f"{serve(kept.app())}/bucket", {"Authorization": "Bearer secret"})
    async with anchoring(store) as anchors:
        anchors.add(5, "note of 5")
        await until(lambda: LATEST in kept.objects)
    assert kept.objects == dict.fromkeys((object_name(5), LATEST), ("note of 5", "Bearer secret"))
    assert "secret" not in store.name


async def test_a_store_without_a_header_gets_no_authorization(serve: Callable[[ASGIApp], str]) -> None:
    kept = ObjectStore()
    store = target_of(f"{serve(kept.app())}/bucket", {})
    await store.put(5, "note of 5")
    await store.close()
    assert kept.objects[LATEST] == ("note of 5", None)


# The examples in Amazon's own documentation of the signature.
AMAZON = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1")
SIGNED = [
    (
        ("GET", "test.txt", b"", {"Range": "bytes=0-9"}),
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    (
        (
            "PUT",
            "test$file.text",
            b"Welcome to Amazon S3.",
            {"Date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
        ),
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
]


@pytest.mark.parametrize(("sent", "signature"), SIGNED)
def test_requests_to_s3_are_signed_as_amazons_examples_are(
    sent: tuple[str, str, bytes, dict[str, str]], signature: str
) -> None:
    method, name, body, extra = sent
    url = f"https://examplebucket.s3.amazonaws.com/{name}"
    headers = AMAZON.headers(method, url, body, datetime(2013, 5, 24, tzinfo=UTC), extra)
    assert headers["Authorization"].endswith(f"Signature={signature}")
    assert AMAZON.secret_key not in repr(AMAZON)


async def test_an_s3_store_gets_what_its_signature_covers(serve: Callable[[ASGIApp], str]) -> None:
    kept = ObjectStore()
    store = target_of(f"{serve(kept.app())}/bucket", {}, AMAZON)
    await store.put(5, "note of 5")
    await store.close()
    note, authorization = kept.objects[object_name(5)]
    sent = kept.headers[object_name(5)]
    at = datetime.strptime(sent["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    covered = {name: sent[name] for name in ("content-type", "content-md5")}
    url = f"http://{sent['host']}/bucket/{object_name(5)}"
    assert AMAZON.headers("PUT", url, note.encode(), at, covered)["Authorization"] == authorization


async def test_a_target_that_fails_is_tried_again_and_stops_no_other(
    serve: Callable[[ASGIApp], str], tmp_path: Path
) -> None:
    kept = ObjectStore()
    kept.refusals = 3
    store, folder = Store(f"{serve(kept.app())}/bucket", {}), Folder(tmp_path)
    nowhere = Store("http://127.0.0.1:9/bucket", {})
    async with anchoring(nowhere, store, folder) as anchors:
        anchors.add(5, "note of 5")
        anchors.add(6, "note of 6")
        await until(lambda: kept.objects.get(LATEST, ("",))[0] == "note of 6")
        await until(lambda: failures(nowhere) >= 2)
        await until(lambda: (tmp_path / object_name(6)).exists())
    assert set(kept.objects) == {object_name(5), object_name(6), LATEST}
    assert failures(store) == 3
    assert failures(folder) == 0


async def test_what_was_anchored_last_is_read_back_from_whoever_answers(
    serve: Callable[[ASGIApp], str], tmp_path: Path
) -> None:
    kept = ObjectStore()
    store, folder = Store(f"{serve(kept.app())}/bucket", {}), Folder(tmp_path)
    async with anchoring(store, folder, Store("http://127.0.0.1:9/bucket", {})) as anchors:
        assert await anchors.newest() == {}
        for target in (store, folder):
            await target.put(5, "note of 5")
        assert await anchors.newest() == {store.name: "note of 5", folder.name: "note of 5"}


async def test_a_folder_that_cannot_be_written_is_a_failed_anchor(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AnchorError):
        await Folder(tmp_path / "file").put(5, "note")


@pytest.mark.parametrize(
    "url",
    ["", "/folder", "file://host/folder", "file://", "s3://bucket", "https://", "https://store/?key=secret"],
)
def test_what_is_no_target_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="an anchor is"):
        target_of(url, {})
