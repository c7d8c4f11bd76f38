#!/usr/bin/env bash
# ranks.sh LIFE.yaml OUT : all GPUs train together; RANKS=2 where there is none
set -euo pipefail
ranks=${RANKS:-$(nvidia-smi --list-gpus | wc -l)}
case ${LAUNCHER:-torchrun} in
  accelerate) launch=(python -m accelerate.commands.launch --num_processes "$ranks") ;;
  *) launch=(python -m torch.distributed.run --standalone --nproc-per-node "$ranks") ;;
esac
exec "${launch[@]}" -m opmix run "$1" --out "$2"
