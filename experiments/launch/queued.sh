#!/usr/bin/env bash
# Runs an experiment to its end on TPUs that are waited for, and may be taken away:
#
#     SPOT=yes experiments/launch/queued.sh step09_diffusion --preset cifar10 --workdir gs://my-bucket/cifar10
#
# It asks for a TPU and waits; installs; runs; and when the TPU is taken away, asks for another one. The run is in a bucket,
# so it goes on from its last checkpoint. Start it where it can stay: in tmux, on a small VM.
set -euo pipefail
source "$(dirname "$0")/settings.sh"

PAUSE=${PAUSE:-60} # seconds between two looks

state() { gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)'; }
ended() { on 0 'cat gen_jax/run.code 2>/dev/null' || true; } # the exit code of the run, nothing before

while true; do
  gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
    --accelerator-type="$TYPE" --runtime-version="$RUNTIME" ${SPOT:+--spot}
  while now=$(state) && ! [[ $now =~ ^(ACTIVE|FAILED|SUSPENDED)$ ]]; do sleep "$PAUSE"; done
  code=
  if [ "$now" = ACTIVE ] && "$here/install.sh" && "$here/run.sh" "$@"; then
    while code=$(ended) && [ -z "$code" ] && [ "$(state)" = ACTIVE ]; do sleep "$PAUSE"; done
  fi
  gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
  if [ -n "$code" ]; then exit "$code"; fi
  sleep "$PAUSE"
done
