"""Kernels of `radargate.ops.mix`: expand, rotate, weigh and add in one pass, and its gradients by recomputing.

A program owns a tile of tokens × columns and goes through its slots: only the tile itself is ever written.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from radargate.ops.triton.elements import angles, chosen, expand, sin_cos, sums_over_columns


@triton.jit
def turn_kernel(
    y,
    h,
    B,
    weights,
    rotation,
    up,
    indices,
    starts,
    out,
    tokens,
    R,
    d,
    n,
    K: tl.constexpr,
    RMAX: tl.constexpr,
    RANK: tl.constexpr,
    ADD: tl.constexpr,
    DENSE: tl.constexpr,
    BOUND: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """out = y + Σ_s g_s R(a_s Q) v_s over a tile; y counts as 0 without ``ADD``."""
    BP: tl.constexpr = BD // 2
    rows = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    cols = tl.program_id(1) * BD + tl.arange(0, BD)
    pairs = tl.program_id(1) * BP + tl.arange(0, BP)
    half = d // 2
    row_mask, col_mask, pair_mask = rows < tokens, cols < d, pairs < half
    even_sum = tl.zeros([BT, BP], tl.float32)
    odd_sum = tl.zeros([BT, BP], tl.float32)
    for slot in range(K):
        expert, start, end = chosen(indices, starts, rows, row_mask, slot, n, K, DENSE)
        v = expand(h, B, starts, slot, expert, start, end, rows, row_mask, cols, col_mask, R, d, RMAX, DENSE, BT, BD)
        even, odd = tl.split(tl.reshape(v, [BT, BP, 2]))
        places = rows * K + slot
        sine, cosine = sin_cos(
            angles(rotation, up, places, row_mask, pairs, pair_mask, half, RANK, BOUND, BT, BP), BOUND
        )
        weight = tl.load(weights + places, mask=row_mask, other=0.0).to(tl.float32)[:, None]
        even_sum += weight * (even * cosine - odd * sine)
        odd_sum += weight * (even * sine + odd * cosine)
    update = tl.reshape(tl.join(even_sum, odd_sum), [BT, BD])
    at = rows[:, None] * d + cols[None, :]
    mask = row_mask[:, None] & col_mask[None, :]
    if ADD:
        update += tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, update.to(out.dtype.element_ty), mask=mask)


@triton.jit
def turn_gradients_kernel(
    grad,
    h,
    B,
    weights,
    rotation,
    up,
    indices,
    starts,
    d_v,
    d_rotation,
    d_up,
    tokens,
    R,
    d,
    n,
    tiles,
    K: tl.constexpr,
    RMAX: tl.constexpr,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    DENSE: tl.constexpr,
    BOUND: tl.constexpr,
    PRECISION: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Partial sums of a tile of columns over its own columns, or over ``tiles`` tiles of tokens.

    d_v [columns, tokens, K, RMAX]: Σ over columns of the gradient turned back, times B's rows; without weights.
    d_rotation [columns, tokens, K, RANK]; d_up [groups, RANK, d // 2].
    """
    BP: tl.constexpr = BD // 2
    block, group = tl.program_id(0), tl.program_id(1)
    cols, pairs, half = block * BD + tl.arange(0, BD), block * BP + tl.arange(0, BP), d // 2
    col_mask, pair_mask = cols < d, pairs < half
    code_cols = tl.arange(0, PADDED)
    up_sum = tl.zeros([PADDED, BP], tl.float32)
    first_place = block.to(tl.int64) * tokens * K  # of this block of columns among the partial sums
    for tile in range(tiles):
        rows = (group * tiles + tile).to(tl.int64) * BT + tl.arange(0, BT)
        row_mask = rows < tokens
        mask = row_mask[:, None] & col_mask[None, :]
        given = tl.load(grad + rows[:, None] * d + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        grad_even, grad_odd = tl.split(tl.reshape(given, [BT, BP, 2]))
        for slot in range(K):
            expert, start, end = chosen(indices, starts, rows, row_mask, slot, n, K, DENSE)
            v = expand(
                h, B, starts, slot, expert, start, end, rows, row_mask, cols, col_mask, R, d, RMAX, DENSE, BT, BD
            )
            even, odd = tl.split(tl.reshape(v, [BT, BP, 2]))
            places = rows * K + slot
            alpha = angles(rotation, up, places, row_mask, pairs, pair_mask, half, RANK, BOUND, BT, BP)
            sine, cosine = sin_cos(alpha, BOUND)
            weight = tl.load(weights + places, mask=row_mask, other=0.0).to(tl.float32)[:, None]
            # turning the gradient back gives that of v; its part across v is what a further turn changes
            back_even = grad_even * cosine + grad_odd * sine
            back_odd = grad_odd * cosine - grad_even * sine
            d_alpha = weight * (even * back_odd - odd * back_even)
            if BOUND:
                share = alpha * 0.3183098861837907
                d_alpha *= 1.0 - share * share
            d_alpha = tl.where(pair_mask[None, :], d_alpha, 0.0)
            code_mask = row_mask[:, None] & (code_cols < RANK)[None, :]
            codes = tl.load(rotation + places[:, None] * RANK + code_cols[None, :], mask=code_mask, other=0.0)
            up_sum += tl.dot(tl.trans(codes.to(tl.float32)), d_alpha, input_precision=PRECISION)
            for c in range(RANK):
                row = tl.load(up + c * half + pairs, mask=pair_mask, other=0.0).to(tl.float32)
                at = d_rotation + (first_place + places) * RANK + c
                tl.store(at, tl.sum(d_alpha * row[None, :], 1), mask=row_mask)
            back = tl.reshape(tl.join(back_even, back_odd), [BT, BD])
            sums_over_columns(
                back, B, starts, slot, start, end, cols, col_mask, d_v, first_place + places, row_mask, d, RMAX, DENSE
            )
    at = (group * RANK + code_cols)[:, None] * half + pairs[None, :]
    tl.store(d_up + at, up_sum, mask=(code_cols < RANK)[:, None] & pair_mask[None, :])


@triton.jit
def collect_codes_kernel(
    sums,
    weights,
    indices,
    owner,
    starts,
    d_h,
    tokens,
    R,
    n,
    K: tl.constexpr,
    RMAX: tl.constexpr,
    WEIGHTED: tl.constexpr,
    DENSE: tl.constexpr,
    BT: tl.constexpr,
    BR: tl.constexpr,
):
    """Add what each slot found for its expert's rows of B to the gradient of h: read by h's coordinate, never scattered.

    sums [tokens, K, RMAX]; d_h [tokens, R] already holds the rest.
    """
    rows = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    codes = tl.program_id(1) * BR + tl.arange(0, BR)
    row_mask, code_mask = rows < tokens, codes < R
    mine = tl.load(owner + codes, mask=code_mask, other=-1)
    local = codes - tl.load(starts + mine, mask=code_mask, other=0)
    mask = row_mask[:, None] & code_mask[None, :]
    at = d_h + rows[:, None] * R + codes[None, :]
    total = tl.load(at, mask=mask, other=0.0)
    for slot in range(1 if DENSE else K):
        if DENSE:
            place = rows[:, None] * K + mine[None, :]
            here = mask
        else:
            expert = tl.load(indices + rows * K + slot, mask=row_mask, other=-1).to(tl.int32)
            place = (rows * K + slot)[:, None] + tl.zeros([BT, BR], tl.int64)
            here = mask & (expert[:, None] == mine[None, :])
        found = tl.load(sums + place * RMAX + local[None, :], mask=here, other=0.0)
        if WEIGHTED:
            found *= tl.load(weights + place, mask=here, other=0.0).to(tl.float32)
        total += found
    tl.store(at, total, mask=mask)
