#!/usr/bin/env bash
# Runs a command until it is done. On a slice it runs on every host.
#
#     experiments/launch/loop.sh python experiments/step09_diffusion.py --workdir checkpoints/mine
#
# It begins the command again after a preemption (exit code 75), and RETRIES times after other failures. A wrong option (2)
# and Ctrl-C (130) end it. SIGTERM and SIGINT are handed on: the command saves, and the loop ends with its exit code.
set -muo pipefail

RETRIES=${RETRIES:-10} # failures since the last preemption
PAUSE=${PAUSE:-10}     # seconds before it begins again

signals=0 failures=0 child=
hand_on() {
  signals=$((signals + 1))
  kill -"$1" "$child" 2>/dev/null
}
trap 'hand_on TERM' TERM
trap 'hand_on INT' INT

while true; do
  "$@" &
  child=$!
  while # a signal interrupts `wait`
    seen=$signals
    wait "$child"
    code=$?
    [ "$signals" -ne "$seen" ]
  do :; done
  case $code in
    0 | 2 | 130) exit "$code" ;;
    75) failures=0 ;;
    *) failures=$((failures + 1)) ;;
  esac
  if [ "$signals" -gt 0 ] || [ "$failures" -gt "$RETRIES" ]; then exit "$code"; fi
  echo "loop.sh: exit code $code, begins again in $PAUSE s" >&2
  sleep "$PAUSE"
  if [ "$signals" -gt 0 ]; then exit "$code"; fi
done
