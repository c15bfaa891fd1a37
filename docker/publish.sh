#!/usr/bin/env bash
# Builds the images for all platforms and pushes them, with SBOM and provenance:
#   docker/publish.sh registry.example/vessa 1.2.0
# Of server and trainer there are two: with CUDA (1.2.0), for amd64, and without (1.2.0-cpu). Prints what was
# pushed with its digest. Needs a Docker with buildx that is logged in to the registry.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?registry/name} version=${2:?version}
cpu=https://download.pytorch.org/whl/cpu
digests=$(mktemp); trap 'rm -f "$digests"' EXIT
push() { # TARGET TAG PLATFORMS [ARGUMENT ...]
  docker buildx build --file docker/Dockerfile --target "$1" --platform "$3" --sbom=true --provenance=true \
    --build-arg "VERSION=$version" "${@:4}" --tag "$name-$1:$2" --push --metadata-file "$digests" .
  docker buildx prune --all --force >/dev/null # an image with CUDA leaves 20 GB of cache
  echo "$name-$1:$2 $(grep -o '"containerimage.digest": *"[^"]*' "$digests" | cut -d'"' -f4)"
}
for target in server trainer; do
  push "$target" "$version" linux/amd64
  push "$target" "$version-cpu" linux/amd64,linux/arm64 --build-arg "TORCH_INDEX=$cpu"
done
push client "$version" linux/amd64,linux/arm64
