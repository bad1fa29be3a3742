#!/usr/bin/env bash
# Installs the proxies that `make bench-peers` measures beside Darktree, each in a folder of its own under .venv-peers: none of
# them shares a dependency with us. nginx is the system's (Debian: nginx-light). What cannot be installed is left out of the run.
#
# PYTHON chooses the interpreter (3.11 or newer). A second call with the same versions does nothing.
set -uo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
peers="$root/.venv-peers"
mkdir -p "$peers"

for name in router litellm litellm-older; do
    requirements="$root/benchmarks/peers/requirements-$name.txt"
    marker="$peers/$name/.installed"
    if [[ -f "$marker" ]] && cmp --silent "$requirements" "$marker"; then
        echo "peers: $name is installed"
        continue
    fi
    echo "peers: installing $name"
    "${PYTHON:-python3}" -m venv --clear "$peers/$name"
    "$peers/$name/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-deps \
        --requirement "$requirements" && cp "$requirements" "$marker"
done

mkdir -p "$peers/portkey"
cp "$root"/benchmarks/peers/portkey/package*.json "$peers/portkey/"
npm ci --prefix "$peers/portkey" --ignore-scripts --no-audit --no-fund
