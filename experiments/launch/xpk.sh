#!/usr/bin/env bash
# The same by XPK, which makes the JobSet itself:
#
#     CLUSTER=mine experiments/launch/xpk.sh step09_diffusion --preset cifar10 --workdir gs://my-bucket/cifar10
set -euo pipefail
source "$(dirname "$0")/settings.sh"

CLUSTER=${CLUSTER:-my-cluster}
experiment=$1
shift
docker build --file "$here/Dockerfile" --tag gen-jax "$root"
# XPK begins again after 42 and 127 to 255 by itself; 75 is a preemption, 1 the end of one process of several
xpk workload create --cluster="$CLUSTER" --zone="$ZONE" --workload="$NAME" --tpu-type="$TYPE" \
  --base-docker-image=gen-jax --script-dir="$root" --max-restarts=50 --restart-on-exit-codes=1,75 \
  --termination-grace-period-seconds=120 --command="python experiments/$experiment.py$(printf ' %q' "$@")"
