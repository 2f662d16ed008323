#!/usr/bin/env bash
# Starts an experiment on all hosts of the TPU, in a loop that goes on when the connection ends:
#
#     experiments/launch/run.sh step09_diffusion --preset cifar10 --dataset cifar10 --workdir gs://my-bucket/cifar10
#
# Its words are in ~/gen_jax/run.log of each host, and at the end the exit code in run.code.
set -euo pipefail
source "$(dirname "$0")/settings.sh"

experiment=$1
shift
inner="experiments/launch/loop.sh .venv/bin/python experiments/$experiment.py$(printf ' %q' "$@"); echo \$? > run.code"
on all "
  cd gen_jax
  rm -f run.code
  setsid nohup bash -c $(printf %q "$inner") > run.log 2>&1 < /dev/null &
  echo \$! > run.pid
"
