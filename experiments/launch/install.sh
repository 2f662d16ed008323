#!/usr/bin/env bash
# Copies the committed tree to every host of the TPU, into ~/gen_jax, and installs it there with a Python of its own:
# the images of TPU VMs have Python 3.10, which is too old.
set -euo pipefail
source "$(dirname "$0")/settings.sh"

archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
git -C "$root" archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$NAME:gen_jax.tar.gz" --zone="$ZONE" --worker=all
# shellcheck disable=SC2016  # it is the host's shell that expands
on all '
  set -eu
  mkdir -p gen_jax
  tar -xzf gen_jax.tar.gz -C gen_jax
  cd gen_jax
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv || curl -LsSf https://astral.sh/uv/install.sh | sh
  test -d .venv || uv venv --python 3.12 .venv
  uv pip install --python .venv/bin/python -e ".[tpu]"
'
