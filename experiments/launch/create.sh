#!/usr/bin/env bash
# Makes a TPU VM, or a slice of several hosts, at once; queued.sh waits for one.
set -euo pipefail
source "$(dirname "$0")/settings.sh"

gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="$RUNTIME" ${SPOT:+--spot}
