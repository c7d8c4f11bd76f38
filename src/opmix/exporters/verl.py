"""verl: a sampler of its `data.sampler`, which draws prompts by what their `data_source` column says."""

from __future__ import annotations

from opmix.exporters.base import Export, assemble, check_unit, python_literal
from opmix.exporters.locations import held_out_warning
from opmix.exporters.plan import MixturePlan, Unit

_BODY = '''
import random
from collections import defaultdict

from verl.experimental.dataset.sampler import AbstractSampler

WEIGHTS = {weights}  # by the data_source of a row
ROWS = {rows}  # in the budget; None: as many as there are
SEED = {seed}


class MixtureSampler(AbstractSampler):
    """Rows in the order of the mixture: at every point no domain is a row or more behind its share."""

    def __init__(self, data_source, data_config):
        self.rows = defaultdict(list)
        for index, name in enumerate(data_source.dataframe["data_source"]):
            self.rows[name].append(index)
        missing = [name for name in WEIGHTS if not self.rows[name]]
        if missing:
            raise ValueError(f"no row whose data_source is {{missing[0]!r}}; there are {{sorted(self.rows)[:9]}}")
        self.length = ROWS or len(data_source)
        self.passes = 0

    def __len__(self):
        return self.length

    def __iter__(self):
        orders = {{name: self._order(name) for name in WEIGHTS}}
        drawn = dict.fromkeys(WEIGHTS, 0)
        self.passes += 1
        for count in range(1, self.length + 1):
            name = max(WEIGHTS, key=lambda n: WEIGHTS[n] * count - drawn[n])
            drawn[name] += 1
            yield next(orders[name])

    def _order(self, name):
        source = random.Random(f"{{SEED}} {{self.passes}} {{name}}")
        while True:
            rows = list(self.rows[name])
            source.shuffle(rows)
            yield from rows
'''


class VerlExporter:
    """`WEIGHTS` of prompts by `data_source`; a domain is repeated, in another order, when its rows are used up.

    verl concatenates `data.train_files` and has no weights; its `data.sampler` decides the order.
    """

    name = "verl"
    trainer = "verl"
    unit: Unit = "documents"
    suffix = ".py"
    limits = "prompts, not tokens that a policy samples; the Parquet rows' data_source must be the domain's name"

    def export(self, plan: MixturePlan) -> Export:
        """See `MixtureExporter`."""
        check_unit(self, plan)
        weights, rows = plan.row_shares(), plan.rows()
        body = _BODY.format(weights=python_literal(weights), rows=rows, seed=plan.seed)
        notes = (
            "start verl with data.sampler.class_path=THIS_FILE data.sampler.class_name=MixtureSampler "
            "data.dataloader_num_workers=0 data.train_files=[one Parquet file a domain] and trainer.total_epochs=1",
        )
        return assemble(self, plan, weights, body, warnings=held_out_warning(plan), notes=notes)
