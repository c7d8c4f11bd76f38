"""DataFlex: its mixer `opmix`, started as `python -m opmix.plugins.dataflex train.yaml` instead of `dataflex-cli train train.yaml`.

DataFlex asks a mixer for shares of rows at every `update_step`. This one answers with a search on the model as it is then. In its
components file:

    mixers: {opmix: {params: {domains: {web: web/*.jsonl, code: code/*.jsonl}, budget: 50M, search: {probes: {steps: 200}}}}}

The domains' names are those of DataFlex' datasets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from dataflex.core.registry import register_mixer
from dataflex.train.mixer.base_mixer import Mixer

from opmix.api import search
from opmix.errors import ConfigError
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixture_search.search import SearchResult

_ROWS = 1000
"""Of a domain, that its mean length is taken over."""


@register_mixer("opmix")
class OpMixMixer(Mixer):
    """Search on the live model, which comes back as it was, and turn shares of tokens into shares of DataFlex' rows.

    Args:
        mixture_manager: DataFlex' own, with its rows by domain.
        data_collator: Has the tokenizer.
        output_dir: Of the run; decisions are kept in `opmix` below it.
        domains: Text by domain, as `opmix.search` takes it.
        budget: Training tokens until the next update.
        search: Further keys of search.yaml.

    Raises:
        ConfigError: Other domains than DataFlex' datasets.
    """

    def __init__(
        self,
        mixture_manager: Any,
        data_collator: Any,
        output_dir: str,
        domains: Mapping[str, Any],
        budget: int | str,
        search: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(mixture_manager)
        if set(domains) != set(mixture_manager.names):
            known = ", ".join(mixture_manager.names)
            raise ConfigError(f"domains: {', '.join(domains)}; expected those of DataFlex, {known}")
        self.data_collator, self.out, self.domains = data_collator, Path(output_dir) / "opmix", dict(domains)
        self.budget, self.search, self.results = budget, dict(search or {}), list[SearchResult]()

    def mix(self, model: Any, step_id: int, **kwargs: Any) -> FloatArray:
        """Shares of rows for the next stretch, in the order of DataFlex' domains."""
        names, lengths = list(self.mixture_manager.names), self._tokens_per_row()
        tokens = np.asarray(self.mixture_manager.probs, dtype=np.float64) * lengths
        found = search(
            getattr(model, "module", model),
            self.data_collator.tokenizer,
            self.domains,
            budget=self.budget,
            old_mixture=dict(Mixture.normalised(dict(zip(names, tokens.tolist(), strict=True)))),
            out=self.out / f"step-{step_id}",
            progress=None,
            **self.search,
        )
        self.results.append(found)
        rows = np.array([found.mixture[name] for name in names]) / lengths
        shares: FloatArray = rows / rows.sum()
        return shares

    def _tokens_per_row(self) -> FloatArray:
        """Mean tokens of a row of every domain, as DataFlex has cut or packed them."""
        means = []
        for name in self.mixture_manager.names:
            rows = self.mixture_manager.sources[name]
            some = range(0, len(rows), max(1, len(rows) // _ROWS))
            means.append(np.mean([len(rows[i]["input_ids"]) for i in some]))
        return np.array(means, dtype=np.float64)


if __name__ == "__main__":
    from dataflex.launcher import launch

    launch()
