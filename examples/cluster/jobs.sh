#!/usr/bin/env bash
# jobs.sh slurm|ray SEARCH.yaml OUT [--set KEY=VALUE ...] : each probe and each part of the sweep is a job; this command waits for them
set -euo pipefail
kind=$1 search=$2 out=$3
shift 3
exec python -m opmix search "$search" --out "$out" --set "executor.kind=$kind" --set "executor.slots=${SLOTS:-4}" "$@"
