"""A real kube-apiserver on an etcd of its own, found as `setup-envtest` lays them out, and the controllers beside it.

Nothing else runs: pods are played by `fake_kubelet.py`. Everything is gone with the folder.
"""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import yaml
from held_ports import free_port

START_TIMEOUT_SECONDS = 90.0
CRD = Path(__file__).parents[2] / "crds" / "inferencelanes.yaml"
ENVTEST = Path.home() / ".local" / "share" / "kubebuilder-envtest" / "k8s"
ABSENT = (
    "no kube-apiserver and etcd: set KUBEBUILDER_ASSETS to their folder, or run `setup-envtest use` "
    f"(they were looked for in $KUBEBUILDER_ASSETS and {ENVTEST})"
)
CONTROLLERS = (
    "deployment-controller,replicaset-controller,endpointslice-controller,"
    "garbage-collector-controller,job-controller,disruption-controller,namespace-controller"
)


def binaries() -> Path | None:
    """Return the folder with kube-apiserver and etcd, the newest that setup-envtest fetched, or None."""
    asked = os.environ.get("KUBEBUILDER_ASSETS")
    folders = (
        [Path(asked)] if asked else sorted(ENVTEST.glob("*"), key=lambda folder: _numbers(folder.name))[::-1]
    )
    return next(
        (folder for folder in folders if (folder / "kube-apiserver").exists() and (folder / "etcd").exists()),
        None,
    )


@dataclass(slots=True)
class ApiServer:
    """Where it answers, and how to be somebody."""

    folder: Path
    url: str
    version: str = ""
    controllers: bool = False
    users: dict[str, str] = field(default_factory=dict)

    @property
    def authority(self) -> Path:
        return self.folder / "certs" / "apiserver.crt"

    def client(self, user: str = "admin") -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.users[user]}"}
        return httpx.Client(base_url=self.url, headers=headers, verify=False, timeout=30)

    def kubeconfig(self, user: str = "admin", url: str | None = None) -> Path:
        """Return the path of a kubeconfig for this user, at another address if one is named."""
        server = url or self.url
        cluster = {"server": server} | (
            {"insecure-skip-tls-verify": True} if server.startswith("https") else {}
        )
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": self.users[user]}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        path = self.folder / f"{user}-{server.rpartition(':')[2]}.kubeconfig"
        path.write_text(yaml.safe_dump(document))
        return path


@contextmanager
def serving(folder_of_binaries: Path) -> Iterator[ApiServer]:
    """Run etcd, the API server and, where it is, the controller manager; the lanes' definition is in force."""
    with TemporaryDirectory(prefix="dt-") as name:
        folder = Path(name)
        running: list[subprocess.Popen[bytes]] = []
        try:
            yield _start(folder, folder_of_binaries, running)
        finally:
            for process in reversed(running):
                process.kill()
                process.wait()


def _start(folder: Path, binaries_: Path, running: list[subprocess.Popen[bytes]]) -> ApiServer:
    etcd, peer, port = free_port(), free_port(), free_port()
    server = ApiServer(folder, f"https://127.0.0.1:{port}")
    server.users = {
        user: secrets.token_hex(16) for user in ("admin", "operator", "other-operator", "gateway", "nobody")
    }
    groups = {"admin": "system:masters"}
    (folder / "tokens.csv").write_text(
        "".join(f"{token},{user},{user},{groups.get(user, '')}\n" for user, token in server.users.items())
    )
    openssl = shutil.which("openssl")
    assert openssl, "openssl makes the service accounts' key"
    subprocess.run([openssl, "genrsa", "-out", folder / "sa.key", "2048"], check=True, capture_output=True)
    address = f"http://127.0.0.1:{etcd}"
    peers = f"http://127.0.0.1:{peer}"
    running.append(
        _run(
            folder,
            binaries_ / "etcd",
            f"--data-dir={folder}/etcd",
            f"--listen-client-urls={address}",
            f"--advertise-client-urls={address}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
        )
    )
    running.append(
        _run(
            folder,
            binaries_ / "kube-apiserver",
            f"--etcd-servers={address}",
            f"--cert-dir={folder}/certs",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder}/sa.key",
            f"--service-account-signing-key-file={folder}/sa.key",
            f"--token-auth-file={folder}/tokens.csv",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/16",
            "--disable-admission-plugins=ServiceAccount",
        )
    )
    with server.client() as client:
        _until(lambda: client.get("/readyz").status_code == 200, running, folder)
        server.version = client.get("/version").json()["gitVersion"]
        _install(client)
    manager = binaries_ / "kube-controller-manager"
    if manager.exists():
        kubeconfig = server.kubeconfig()
        running.append(
            _run(
                folder,
                manager,
                f"--kubeconfig={kubeconfig}",
                f"--authentication-kubeconfig={kubeconfig}",
                f"--authorization-kubeconfig={kubeconfig}",
                f"--controllers={CONTROLLERS}",
                "--leader-elect=false",
                f"--secure-port={free_port()}",
                "--bind-address=127.0.0.1",
                "--kube-api-qps=500",
                "--kube-api-burst=1000",
                f"--service-account-private-key-file={folder}/sa.key",
            )
        )
        server.controllers = True
    return server


def _install(client: httpx.Client) -> None:
    answer = client.patch(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/inferencelanes.darktree.dev",
        params={"fieldManager": "tests", "force": "true"},
        headers={"Content-Type": "application/apply-patch+yaml"},
        content=CRD.read_bytes(),
    )
    assert answer.status_code == 201, answer.text
    path = "/apis/darktree.dev/v1alpha1/inferencelanes"
    _until(lambda: client.get(path).status_code == 200)


def _run(folder: Path, program: Path, *arguments: str) -> subprocess.Popen[bytes]:
    log = (folder / f"{program.name}.log").open("wb")
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    return subprocess.Popen([program, *arguments], stdout=log, stderr=log, cwd=folder, env=environment)


def _until(done: object, running: list[subprocess.Popen[bytes]] | None = None, folder: Path = Path()) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        try:
            if callable(done) and done():
                return
        except httpx.TransportError:
            pass
        for process in running or ():
            if process.poll() is not None:
                logs = "\n".join(log.read_text()[-1500:] for log in folder.glob("*.log"))
                raise AssertionError(f"{process.args!r} ended\n{logs}")
        assert time.monotonic() < deadline, "the API server did not start"
        time.sleep(0.1)


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.partition("-")[0].split(".") if part.isdigit())
