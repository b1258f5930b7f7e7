"""Some columns of an update are the same columns of the whole one: what processes that share a layer stand on."""

from __future__ import annotations

import pytest
import torch

from radargate import ops
from radargate.errors import BackendError

RANKS, WIDTH, TOKENS, ANGLES = (3, 2, 4), 14, 40, 5
SHARES = ([(0, 6)], [(6, 14)], [(0, 2), (8, 12)], [(4, 4), (12, 14)])


@pytest.mark.parametrize("columns", SHARES, ids=str)
@pytest.mark.parametrize("up", [None, "site", "expert"])
@pytest.mark.parametrize("angle_norm", ["none", "tanh"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_columns_of_a_mix(columns, up, angle_norm, top_k):
    torch.manual_seed(0)
    h, B = torch.randn(TOKENS, sum(RANKS)).double(), torch.randn(sum(RANKS), WIDTH).double()
    onto = torch.randn(TOKENS, WIDTH).double()
    weights, indices = ops.select(torch.randn(TOKENS, len(RANKS)).double(), top_k)
    turned = {None: (), "site": (ANGLES, WIDTH // 2), "expert": (len(RANKS), ANGLES, WIDTH // 2)}[up]
    by = (torch.randn(*weights.shape, ANGLES).double(), torch.randn(turned).double()) if up else ()
    chosen = torch.cat([torch.arange(start, end) for start, end in columns])
    for base in (None, onto):
        given = None if base is None else base[:, chosen]
        whole = ops.mix(h, B, RANKS, weights, indices, *by, angle_norm=angle_norm, onto=base)
        part = ops.mix(h, B, RANKS, weights, indices, *by, angle_norm=angle_norm, onto=given, columns=columns)
        torch.testing.assert_close(part, whole[:, chosen], atol=1e-12, rtol=0)


def test_a_cut_through_a_pair_is_refused():
    h, B, weights = torch.ones(2, 4), torch.ones(4, 8), torch.ones(2, 1)
    with pytest.raises(BackendError, match="cut a pair"):
        ops.mix(h, B, (4,), weights, columns=[(3, 8)])
