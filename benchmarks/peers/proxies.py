"""The peers: each started as its makers recommend for speed, one worker, in front of the same upstream.

Each function is a context manager that yields a running Peer, or raises Missing.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from peers.ground import ENVIRONMENTS, Missing, Peer, free_port, process, tool, tree_of, until_it_answers
from stage import MODEL

MASTER_KEY = "sk-benchmark-1234"
_NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 100000000;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    upstream lane {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
        location / {{ proxy_pass http://lane; }}
    }}
}}
"""


@contextmanager
def nginx(upstream: int) -> Iterator[Peer]:
    program, port = tool("nginx", os.environ["PATH"], "/usr/sbin"), free_port()
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    with TemporaryDirectory() as folder:
        file = Path(folder) / "nginx.conf"
        file.write_text(_NGINX.format(folder=folder, upstream=upstream, port=port))
        with process([program, "-c", str(file), "-e", f"{folder}/errors"]) as running:
            peer = Peer(
                name="nginx",
                version=said.strip().rpartition("/")[2],
                configuration="1 worker, proxy_pass, kept connections, unbuffered, no log",
                does="forwards",
                port=port,
                key="none",
                parts=lambda: {"proxy": tree_of(running)},
            )
            until_it_answers(peer)
            yield peer


@contextmanager
def vllm_router(upstream: int) -> Iterator[Peer]:
    program, port = tool("vllm-router", str(ENVIRONMENTS / "router/bin")), free_port()
    command = [program, "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    command += ["--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin"]
    with process([*command, "--prometheus-port", str(free_port())]) as running:
        peer = Peer(
            name="vllm-router",
            version=_version_of("router", "vllm-router"),
            configuration="round robin over one worker, log level error",
            does="routes (compiled); no keys, no usage, no budget",
            port=port,
            key="none",
            parts=lambda: {"proxy": tree_of(running)},
        )
        until_it_answers(peer)
        yield peer


@contextmanager
def portkey(upstream: int) -> Iterator[Peer]:
    folder = ENVIRONMENTS / "portkey/node_modules/@portkey-ai/gateway"
    if not folder.is_dir():
        raise Missing("Portkey's gateway is not installed")
    program, port = tool("node"), free_port()
    command = [program, str(folder / "build/start-server.js"), f"--port={port}", "--headless"]
    with process(command, environment=os.environ | {"NODE_ENV": "production"}) as running:
        peer = Peer(
            name="Portkey",
            version=json.loads((folder / "package.json").read_text())["version"],
            configuration="headless; provider openai with a custom host",
            does="translates and forwards; its open gateway checks no key and has no budget",
            port=port,
            key="none",
            parts=lambda: {"proxy": tree_of(running)},
            headers={
                "x-portkey-provider": "openai",
                "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1",
            },
        )
        until_it_answers(peer)
        yield peer


@contextmanager
def litellm(upstream: int, environment: str = "litellm") -> Iterator[Peer]:
    program, port = tool("litellm", str(ENVIRONMENTS / environment / "bin")), free_port()
    version = _version_of(environment, "litellm")
    model = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    settings = {
        "model_list": [{"model_name": MODEL, "litellm_params": model}],
        "general_settings": {"master_key": MASTER_KEY},
    }
    quiet = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(json.dumps(settings))  # JSON is YAML
        command = [program, "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
        with process([*command, "--num_workers", "1"], environment=os.environ | quiet) as running:
            peer = Peer(
                name=f"LiteLLM {version}",
                version=version,
                configuration="1 worker, master key, no database, httptools and uvloop, log level error",
                does="checks one master key, translates and forwards; without a database no budget and no spend",
                port=port,
                key=MASTER_KEY,
                parts=lambda: {"proxy": tree_of(running)},
            )
            until_it_answers(peer)
            yield peer


@contextmanager
def older_litellm(upstream: int) -> Iterator[Peer]:
    """The release that was fastest of those tried: the kindest row."""
    with litellm(upstream, "litellm-older") as peer:
        yield peer


def _version_of(environment: str, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    program = str(ENVIRONMENTS / environment / "bin/python")
    return subprocess.run([program, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
