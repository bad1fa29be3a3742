"""The download before a GPU is taken, with the real huggingface_hub of vLLM's environment against a small hub."""

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from darktree_operator.children import DOWNLOAD
from darktree_operator.diagnosis import diagnose
from darktree_operator.reasons import Reason

PYTHON = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
SHA = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b'{"model_type": "qwen2"}', "tokenizer.json": b"{}"}
TIMEOUT_SECONDS = 60
OFFLINE = f"from huggingface_hub import snapshot_download as s; print(s('oak/tree', revision='{SHA}'))"


class Hub(BaseHTTPRequestHandler):
    """One repository, one that is gated, and nothing else; as the real hub words it."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == f"/api/models/oak/tree/revision/{SHA}":
            names = ",".join(f'{{"rfilename": "{name}"}}' for name in FILES)
            self._answer(200, f'{{"id": "oak/tree", "sha": "{SHA}", "siblings": [{names}]}}'.encode())
        elif path.startswith(f"/api/models/oak/tree/tree/{SHA}"):
            rows = (
                f'{{"type": "file", "path": "{name}", "size": {len(content)}, "oid": "{_oid(content)}"}}'
                for name, content in FILES.items()
            )
            self._answer(200, f"[{','.join(rows)}]".encode())
        elif path.startswith(f"/oak/tree/resolve/{SHA}/"):
            self._answer(200, FILES[path.rpartition("/")[2]], commit=True)
        elif "/oak/gated" in path:
            self._answer(403, b"", error="GatedRepo", message="Access to model oak/gated is restricted.")
        elif "/oak/tree" in path:
            self._answer(404, b"", error="RevisionNotFound", message="Invalid rev id: beef")
        else:
            self._answer(404, b"", error="RepoNotFound", message="Repository not found")

    do_HEAD = do_GET

    def _answer(
        self, status: int, body: bytes, *, commit: bool = False, error: str = "", message: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        if commit:
            self.send_header("X-Repo-Commit", SHA)
            self.send_header("ETag", f'"{_oid(body)}"')
        if error:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", message)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    if not PYTHON.exists():
        pytest.skip('there is no real vLLM here: run "make vllm"')
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch(
    hub: str, home: Path, *arguments: str, script: str = DOWNLOAD, **more: str
) -> subprocess.CompletedProcess[str]:
    environment = {"HF_ENDPOINT": hub, "HF_HOME": str(home), "PATH": os.defpath, "HOME": str(home), **more}
    return subprocess.run(
        [PYTHON, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def test_what_was_fetched_is_found_again_by_an_engine_that_reaches_nothing(hub: str, tmp_path: Path) -> None:
    fetched = fetch(hub, tmp_path, "oak/tree", SHA)
    assert fetched.returncode == 0, fetched.stderr
    folder = Path(fetched.stdout.splitlines()[-1])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == FILES
    offline = fetch("http://127.0.0.1:1", tmp_path, script=OFFLINE, HF_HUB_OFFLINE="1")
    assert offline.stdout.splitlines()[-1:] == [str(folder)], offline.stderr


FAILURES = [
    ("oak/gated", SHA, Reason.MODEL_NOT_FOUND, "ask for access"),
    ("oak/none", SHA, Reason.MODEL_NOT_FOUND, "correct spec.model.source"),
    ("oak/tree", "f" * 40, Reason.MODEL_NOT_FOUND, "spec.model.revision to a commit"),
]


@pytest.mark.parametrize(("repository", "revision", "reason", "hint"), FAILURES)
def test_a_failed_download_says_why(
    hub: str, tmp_path: Path, repository: str, revision: str, reason: Reason, hint: str
) -> None:
    failed = fetch(hub, tmp_path, repository, revision)
    assert failed.returncode == 1
    found = diagnose(failed.stderr[-2048:], 1, "Error")
    assert found is not None
    assert found.reason is reason
    assert hint in found.hint


def test_a_hub_that_cannot_be_reached_is_told(hub: str, tmp_path: Path) -> None:
    failed = fetch("http://127.0.0.1:1", tmp_path, "oak/tree", SHA)
    found = diagnose(failed.stderr[-2048:], 1, "Error")
    assert found is not None
    assert found.reason is Reason.DOWNLOAD_FAILED
