# shellcheck shell=bash disable=SC2034
# What the scripts of this directory take. Others are given in the environment:
#
#     NAME=large TYPE=v5litepod-64 experiments/launch/create.sh

NAME=${NAME:-gen-jax}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-16} # 16 chips of v5e, on 4 hosts
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} # v5p: v2-alpha-tpuv5, v6e: v2-alpha-tpuv6e, v4 and older: tpu-ubuntu2204-base
SPOT=${SPOT:-} # yes: cheaper, and may be taken away at any time

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

on() { # WORKER COMMAND: runs a shell command on one host of the TPU, or on `all` of them
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker="$1" --command="$2"
}
