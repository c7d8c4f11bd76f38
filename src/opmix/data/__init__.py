"""From text to token-exact batches: sources, splits, cached tokens, packed sequences, and the plan that mixes them."""

from opmix.data.cache import TokenizedDomain, TokenSplit
from opmix.data.dataset import MixtureDataset
from opmix.data.packing import PackedSequences, held_out_batch
from opmix.data.prepare import prepare_domain
from opmix.data.sampler import MixturePlan, plan_mixture
from opmix.data.sources import iter_documents, source_fingerprint
from opmix.data.stream import MixtureStream

__all__ = [
    "MixtureDataset",
    "MixturePlan",
    "MixtureStream",
    "PackedSequences",
    "TokenSplit",
    "TokenizedDomain",
    "held_out_batch",
    "iter_documents",
    "plan_mixture",
    "prepare_domain",
    "source_fingerprint",
]
