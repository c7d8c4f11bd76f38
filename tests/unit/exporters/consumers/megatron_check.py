"""Megatron: the array as Bash has it, its own reading of a blend, its own C++ blending of samples."""

import subprocess
from collections import Counter

import numpy as np
from consumer import FILE, report
from megatron.core.datasets import helpers_cpp
from megatron.core.datasets.utils import get_blend_from_list, normalize

script = f"source {FILE}; printf '%s\\n' \"${{DATA_ARGS[@]}}\""
arguments = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True).stdout.split()
assert arguments[0] == "--data-path"
prefixes, weights = get_blend_from_list(arguments[1:])
size = 10_000
dataset, sample = np.zeros(size, dtype=np.int16), np.zeros(size, dtype=np.int64)
helpers_cpp.build_blending_indices(
    dataset, sample, np.array(normalize(weights), dtype=np.float64), len(weights), size, False
)
report("megatron-core", Counter(prefixes[i].removesuffix("_text_document") for i in dataset))
