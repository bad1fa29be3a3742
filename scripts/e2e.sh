#!/usr/bin/env bash
# `make e2e`: the story of tests/e2e on the cluster that KUBECONFIG names, or on a kind cluster where Docker is.
#
#   PUSH           a command that takes names of local images and gives them to the cluster's nodes; known for kind
#   E2E_ENTRY      the address of the controller for Gateways and Ingresses, such as http://10.0.0.2
#   E2E_GATEWAY    namespace/name of a Gateway with a listener for any host; E2E_INGRESS_CLASS: the Ingress class
#   E2E_NODE       how a command is run on a node, such as `docker exec NODE`, or `env` on the node itself: its processes are killed
#   E2E_PREVIOUS   a commit to upgrade from; without it the same code under another name
#   E2E_IMAGE, E2E_PREVIOUS_IMAGE: images that are built already
#   E2E_KEEP=1     leave everything installed
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/build/bin:$PATH"

if [ -z "${KUBECONFIG:-}" ]; then
	command -v docker kind >/dev/null || {
		echo "make e2e: set KUBECONFIG and PUSH, or install docker and kind" >&2
		exit 1
	}
	export KUBECONFIG="$PWD/build/kind.kubeconfig" PUSH="kind load docker-image --name darktree-e2e"
	export E2E_NODE="docker exec darktree-e2e-control-plane"
	kind get clusters | grep -qx darktree-e2e || kind create cluster --name darktree-e2e --wait 120s
fi
: "${PUSH:?must be the command that gives images to the nodes, such as: kind load docker-image}"

if [ -z "${E2E_IMAGE:-}" ]; then
	# New names each time: a node keeps what it has pulled under a name.
	now=$(date +%s)
	export E2E_IMAGE="darktree:e2e-$now" E2E_PREVIOUS_IMAGE="darktree:e2e-$now-previous"
	make --no-print-directory image IMAGE="$E2E_IMAGE"
	if [ -n "${E2E_PREVIOUS:-}" ]; then
		rm -rf build/previous && mkdir -p build/previous
		git archive "$E2E_PREVIOUS" | tar -x -C build/previous
		make --no-print-directory image IMAGE="$E2E_PREVIOUS_IMAGE" CONTEXT=build/previous
	else
		make --no-print-directory image IMAGE="$E2E_PREVIOUS_IMAGE" ARGS="--label previous=yes"
	fi
fi
$PUSH "$E2E_IMAGE" "$E2E_PREVIOUS_IMAGE"
exec .venv/bin/python -m pytest tests/e2e --timeout 1800 -s -x "$@"
