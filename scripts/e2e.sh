#!/usr/bin/env bash
# `make e2e`: the story of tests/e2e on the cluster that KUBECONFIG names, or on a kind cluster where Docker is.
#
# PUSH is a command that takes names of local images and gives them to the cluster's nodes. With kind it is known.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/build/bin:$PATH"

if [ -z "${KUBECONFIG:-}" ]; then
	command -v docker kind >/dev/null || {
		echo "make e2e: set KUBECONFIG (and PUSH), or install docker and kind" >&2
		exit 1
	}
	export KUBECONFIG="$PWD/build/kind.kubeconfig" PUSH="kind load docker-image --name darktree-e2e"
	kind get clusters | grep -qx darktree-e2e || kind create cluster --name darktree-e2e --wait 120s
fi
export E2E_PUSH="${PUSH:?PUSH must be the command that gives images to the cluster: PUSH="kind load docker-image"}"
exec .venv/bin/python -m pytest tests/e2e --timeout 1800 -s -x "$@"
