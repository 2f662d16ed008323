#!/usr/bin/env bash
# Builds an image of the tree, and runs what jobset.yaml says on a GKE cluster that has TPU nodes and JobSet:
#
#     IMAGE=us-docker.pkg.dev/my-project/images/gen-jax experiments/launch/gke.sh
set -euo pipefail

IMAGE=${IMAGE:-us-docker.pkg.dev/my-project/images/gen-jax} # where the image goes
here=$(cd "$(dirname "$0")" && pwd)

docker build --file "$here/Dockerfile" --tag "$IMAGE" "$here/../.."
docker push "$IMAGE"
sed "s|image: gen-jax|image: $IMAGE|" "$here/jobset.yaml" | kubectl apply --filename -
