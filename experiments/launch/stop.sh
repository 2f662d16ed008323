#!/usr/bin/env bash
# Ends the run on all hosts of the TPU; it saves first, and run.sh goes on from there.
set -euo pipefail
source "$(dirname "$0")/settings.sh"

# shellcheck disable=SC2016  # it is the host's shell that expands
on all 'kill -- "-$(cat gen_jax/run.pid)"'
