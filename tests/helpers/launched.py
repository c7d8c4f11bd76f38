"""Two ranks, and what they share with one process."""

import numpy as np

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def same_search(found, near):
    """Of one process and of two ranks: losses up to `near`; the same keys, ledger and files; gone on with, the model given back."""
    one, two = found
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=0, atol=near)
    for content in found:
        assert content["again"]
        assert content["given_back"]
    for kind in ("keys", "ledger", "left"):
        assert one[kind] == two[kind]
