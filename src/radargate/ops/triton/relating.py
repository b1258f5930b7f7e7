"""Kernels of `radargate.ops.rotation_codes`: (v ⊙ Σ of the others) P for each slot, and its gradients by recomputing.

The others are the sum of all, one product outside of here, minus v. Under unit scaling, places whose others are small
beside v get them from their own codes: there the difference is mostly rounding, which unit scaling would blow up.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from radargate.ops.triton.elements import chosen, expand, others_of, sums_over_columns


@triton.jit
def project(
    product,
    down,
    cols,
    col_mask,
    code_cols,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile [BT, BD] times its rows of P: [BT, PADDED]."""
    mask = col_mask[:, None] & (code_cols < RANK)[None, :]
    P = tl.load(down + cols[:, None] * RANK + code_cols[None, :], mask=mask, other=0.0).to(tl.float32)
    if DOT:
        return tl.dot(product, P, input_precision=PRECISION)
    return tl.sum(product[:, :, None] * P[None, :, :], 1)  # too few tokens for a matrix unit


@triton.jit
def inverse_rms(square, d):
    """1 / rms from a sum of d squares; 0 where it is 0."""
    live = square > 0
    return tl.where(live, tl.sqrt(d / tl.where(live, square, 1.0)), 0.0)


@triton.jit
def codes_kernel(
    h,
    B,
    total,
    down,
    indices,
    starts,
    owner,
    code,
    scales,
    tokens,
    R,
    d,
    n,
    others,
    K: tl.constexpr,
    RMAX: tl.constexpr,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    UNIT: tl.constexpr,
    DENSE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Rotation codes of one slot of a tile of tokens.

    code [tokens, K, RANK]; with ``UNIT`` also scales [tokens, K, 3]: 1/rms of v and of the others, and whether
    those came from their own codes.
    """
    rows = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    slot = tl.program_id(1)
    row_mask, code_cols, places = rows < tokens, tl.arange(0, PADDED), rows * K + slot
    expert, start, end = chosen(indices, starts, rows, row_mask, slot, n, K, DENSE)
    raw = tl.zeros([BT, PADDED], tl.float32)
    v_square, other_square = tl.zeros([BT], tl.float32), tl.zeros([BT], tl.float32)
    for first in range(0, d, BD):
        cols = first + tl.arange(0, BD)
        col_mask = cols < d
        mask = row_mask[:, None] & col_mask[None, :]
        v = expand(h, B, starts, slot, expert, start, end, rows, row_mask, cols, col_mask, R, d, RMAX, DENSE, BT, BD)
        other = tl.load(total + rows[:, None] * d + cols[None, :], mask=mask, other=0.0).to(tl.float32) - v
        other = tl.where(mask, other, 0.0)
        raw += project(v * other, down, cols, col_mask, code_cols, RANK, PADDED, DOT, PRECISION)
        if UNIT:
            v_square += tl.sum(v * v, 1)
            other_square += tl.sum(other * other, 1)
    if UNIT:
        small = row_mask & (other_square < 0.25 * v_square)
        if tl.max(small.to(tl.int32), 0) > 0:
            exact, exact_square = tl.zeros([BT, PADDED], tl.float32), tl.zeros([BT], tl.float32)
            for first in range(0, d, BD):
                cols = first + tl.arange(0, BD)
                col_mask = cols < d
                v = expand(
                    h, B, starts, slot, expert, start, end, rows, row_mask, cols, col_mask, R, d, RMAX, DENSE, BT, BD
                )
                other = others_of(h, B, owner, expert, rows, small, cols, col_mask, R, d, BT, BD)
                exact += project(v * other, down, cols, col_mask, code_cols, RANK, PADDED, DOT, PRECISION)
                exact_square += tl.sum(other * other, 1)
            raw = tl.where(small[:, None], exact, raw)
            other_square = tl.where(small, exact_square, other_square)
        own, theirs = inverse_rms(v_square, d), inverse_rms(other_square, d)
        raw *= (own * theirs)[:, None]
        tl.store(scales + places * 3, own, mask=row_mask)
        tl.store(scales + places * 3 + 1, theirs, mask=row_mask)
        tl.store(scales + places * 3 + 2, small.to(tl.float32), mask=row_mask)
    else:
        raw = raw / others
    mask = row_mask[:, None] & (code_cols < RANK)[None, :]
    tl.store(code + places[:, None] * RANK + code_cols[None, :], raw, mask=mask)


@triton.jit
def codes_gradients_kernel(
    grad,
    h,
    B,
    total,
    down,
    indices,
    starts,
    owner,
    scales,
    reach,
    d_v,
    d_total,
    d_down,
    tokens,
    R,
    d,
    n,
    others,
    tiles,
    K: tl.constexpr,
    RMAX: tl.constexpr,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    UNIT: tl.constexpr,
    DENSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Partial sums of a tile of columns over its own columns, or over ``tiles`` tiles of tokens.

    d_v [columns, tokens, K, RMAX]; d_total [tokens, d], whole; d_down [groups, d, RANK]. Places whose others came from
    their own codes leave those to `rest_gradients_kernel`. ``reach`` [tokens, K] is Σ grad · code / d.
    """
    block, group = tl.program_id(0), tl.program_id(1)
    cols, code_cols = block * BD + tl.arange(0, BD), tl.arange(0, PADDED)
    col_mask = cols < d
    P_mask = (code_cols < RANK)[:, None] & col_mask[None, :]
    P = tl.load(down + cols[None, :] * RANK + code_cols[:, None], mask=P_mask, other=0.0).to(tl.float32)
    down_sum = tl.zeros([PADDED, BD], tl.float32)
    first_place = block.to(tl.int64) * tokens * K
    for tile in range(tiles):
        rows = (group * tiles + tile).to(tl.int64) * BT + tl.arange(0, BT)
        row_mask = rows < tokens
        mask = row_mask[:, None] & col_mask[None, :]
        at = rows[:, None] * d + cols[None, :]
        everyone = tl.load(total + at, mask=mask, other=0.0).to(tl.float32)
        total_sum = tl.zeros([BT, BD], tl.float32)
        for slot in range(K):
            expert, start, end = chosen(indices, starts, rows, row_mask, slot, n, K, DENSE)
            places = rows * K + slot
            v = expand(
                h, B, starts, slot, expert, start, end, rows, row_mask, cols, col_mask, R, d, RMAX, DENSE, BT, BD
            )
            other = tl.where(mask, everyone - v, 0.0)
            code_mask = row_mask[:, None] & (code_cols < RANK)[None, :]
            scaled = tl.load(grad + places[:, None] * RANK + code_cols[None, :], mask=code_mask, other=0.0)
            scaled = scaled.to(tl.float32)
            if UNIT:
                own = tl.load(scales + places * 3, mask=row_mask, other=0.0)
                theirs = tl.load(scales + places * 3 + 1, mask=row_mask, other=0.0)
                small = tl.load(scales + places * 3 + 2, mask=row_mask, other=0.0) > 0
                if tl.max(small.to(tl.int32), 0) > 0:
                    exact = others_of(h, B, owner, expert, rows, small, cols, col_mask, R, d, BT, BD)
                    other = tl.where(small[:, None], exact, other)
                scaled *= (own * theirs)[:, None]
            else:
                scaled = scaled / others
            down_sum += tl.dot(tl.trans(scaled), v * other, input_precision=PRECISION)
            through = tl.dot(scaled, P, input_precision=PRECISION)
            to_v, to_other = through * other, through * v
            if UNIT:
                # code = own theirs · raw with own = (mean square)^-1/2, so d own / dv = -own³ v / d
                share = tl.load(reach + places, mask=row_mask, other=0.0)
                to_v -= (share * own * own)[:, None] * v
                to_other -= (share * theirs * theirs)[:, None] * other
                to_other = tl.where(small[:, None], 0.0, to_other)
            total_sum += to_other
            sums_over_columns(
                to_v - to_other,
                B,
                starts,
                slot,
                start,
                end,
                cols,
                col_mask,
                d_v,
                first_place + places,
                row_mask,
                d,
                RMAX,
                DENSE,
            )
        tl.store(d_total + at, total_sum, mask=mask)
    mask = (code_cols < RANK)[:, None] & col_mask[None, :]
    tl.store(d_down + (group * d + cols[None, :]) * RANK + code_cols[:, None], down_sum, mask=mask)


@triton.jit
def rest_gradients_kernel(
    grad,
    h,
    B,
    down,
    indices,
    starts,
    owner,
    scales,
    reach,
    d_h,
    tokens,
    R,
    d,
    n,
    K: tl.constexpr,
    RMAX: tl.constexpr,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    DENSE: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """Add to d_h [tokens, R] what places whose others came from their own codes owe to those; one token a program."""
    row = tl.program_id(0).to(tl.int64)
    rows = row + tl.arange(0, 1)
    row_mask, code_cols = rows < tokens, tl.arange(0, PADDED)
    for slot in range(K):
        place = row * K + slot
        if tl.load(scales + place * 3 + 2) > 0:
            expert, start, end = chosen(indices, starts, rows, row_mask, slot, n, K, DENSE)
            own, theirs = tl.load(scales + place * 3), tl.load(scales + place * 3 + 1)
            share = tl.load(reach + place) * theirs * theirs
            scaled = tl.load(grad + place * RANK + code_cols, mask=code_cols < RANK, other=0.0).to(tl.float32)
            scaled *= own * theirs
            for first_code in range(0, R, BR):
                codes = first_code + tl.arange(0, BR)
                code_mask = codes < R
                theirs_too = code_mask & (tl.load(owner + codes, mask=code_mask, other=-1) != tl.sum(expert, 0))
                total = tl.zeros([BR], tl.float32)
                for first in range(0, d, BD):
                    cols = first + tl.arange(0, BD)
                    col_mask = cols < d
                    v = expand(
                        h, B, starts, slot, expert, start, end, rows, row_mask, cols, col_mask, R, d, RMAX, DENSE, 1, BD
                    )
                    other = others_of(h, B, owner, expert, rows, row_mask, cols, col_mask, R, d, 1, BD)
                    mask = col_mask[:, None] & (code_cols < RANK)[None, :]
                    P = tl.load(down + cols[:, None] * RANK + code_cols[None, :], mask=mask, other=0.0).to(tl.float32)
                    to_other = tl.sum(P * scaled[None, :], 1)[None, :] * v - share * other
                    mask = theirs_too[:, None] & col_mask[None, :]
                    block = tl.load(B + codes[:, None] * d + cols[None, :], mask=mask, other=0.0).to(tl.float32)
                    total += tl.sum(block * to_other, 1)
                at = d_h + row * R + codes
                tl.store(at, tl.load(at, mask=theirs_too, other=0.0) + total, mask=theirs_too)
