#!/usr/bin/env bash
# slots.sh SEARCH.yaml OUT : one process a GPU; SLOTS=2 where there is none
set -euo pipefail
slots=${SLOTS:-$(nvidia-smi --list-gpus | wc -l)}
exec python -m opmix search "$1" --out "$2" --set "executor.slots=$slots"
