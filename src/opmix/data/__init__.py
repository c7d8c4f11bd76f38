"""From text to token-exact batches: sources, splits, cached tokens, packed sequences, and the plan that mixes them."""

from opmix.data.cache import TokenizedDomain, TokenSplit
from opmix.data.chat.conversation import domain_kind, iter_conversations, row_schema
from opmix.data.chat.rows import ChatRows
from opmix.data.dataset import GroupedDataset, MixtureDataset, pad_rows
from opmix.data.packing import PackedSequences, held_out_batch
from opmix.data.periodic import plan_stretch
from opmix.data.prepare import prepare_domain
from opmix.data.rows import Rows, supervised_per_row
from opmix.data.sampler import MixturePlan, Plan, plan_mixture
from opmix.data.sources import iter_documents, source_fingerprint
from opmix.data.stream import MixtureStream
from opmix.data.token_plan import plan_supervised

__all__ = [
    "ChatRows",
    "GroupedDataset",
    "MixtureDataset",
    "MixturePlan",
    "MixtureStream",
    "PackedSequences",
    "Plan",
    "Rows",
    "TokenSplit",
    "TokenizedDomain",
    "domain_kind",
    "held_out_batch",
    "iter_conversations",
    "iter_documents",
    "pad_rows",
    "plan_mixture",
    "plan_stretch",
    "plan_supervised",
    "prepare_domain",
    "row_schema",
    "source_fingerprint",
    "supervised_per_row",
]
