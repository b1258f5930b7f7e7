"""What both pairs of kernels are made of: sine and cosine, angles, an expert's output, and sums over columns.

Tiles are tokens × columns. Nothing here knows of a loop over tokens. Everything is float32, whatever was loaded.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

# where the reduction in steps of π/2 below is exact to the last bit; beyond, the libraries' own functions take over
FAR = tl.constexpr(8192.0)


@triton.jit
def near_sin_cos(x):
    """Sine and cosine of |x| <= 8192 together, to about one unit in the last place."""
    turns = tl.floor(x * 0.6366197723675814 + 0.5)
    # π/2 in three parts, the first two short enough that their products with up to 13 bits are exact
    r = ((x - turns * 1.5703125) - turns * 4.837512969970703125e-4) - turns * 7.549789954891882e-8
    z = r * r
    s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * r + r
    c = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0
    quarter = turns.to(tl.int32) & 3
    odd = (quarter & 1) == 1
    sine, cosine = tl.where(odd, c, s), tl.where(odd, s, c)
    return tl.where(quarter >= 2, -sine, sine), tl.where((quarter == 1) | (quarter == 2), -cosine, cosine)


@triton.jit
def sin_cos(x, BOUND: tl.constexpr):
    """Sine and cosine of a tile of any size; ``BOUND`` promises |x| <= π."""
    if BOUND:
        sine, cosine = near_sin_cos(x)
    else:
        # one branch for the tile: a branch for every element costs more than both functions
        if tl.max(tl.max(tl.abs(x), 1), 0) > FAR:
            sine, cosine = tl.sin(x), tl.cos(x)
        else:
            sine, cosine = near_sin_cos(x)
    return sine, cosine


@triton.jit
def tanh(x):
    """Hyperbolic tangent, with small results as exact as large ones."""
    size = tl.abs(x)
    shrunk = tl.exp(-2.0 * size)
    large = (1.0 - shrunk) / (1.0 + shrunk)
    z = x * x
    near = (((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z
    small = (near - 3.33332819422e-1) * z * x + x
    return tl.where(size < 0.625, small, tl.where(x < 0, -large, large))


@triton.jit
def angles(
    rotation,
    up,
    places,
    live,
    pairs,
    pair_mask,
    half,
    RANK: tl.constexpr,
    BOUND: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
):
    """Angles [BT, BP] = codes at ``places`` times Q; 0 where an odd width leaves a column without a partner."""
    alpha = tl.zeros([BT, BP], tl.float32)
    for c in range(RANK):
        code = tl.load(rotation + places * RANK + c, mask=live, other=0.0).to(tl.float32)
        row = tl.load(up + c * half + pairs, mask=pair_mask, other=0.0).to(tl.float32)
        alpha += code[:, None] * row[None, :]
    if BOUND:
        alpha = 3.141592653589793 * tanh(alpha * 0.3183098861837907)
    return alpha


@triton.jit
def chosen(indices, starts, rows, row_mask, slot, n, K: tl.constexpr, DENSE: tl.constexpr):
    """Which expert a slot holds for each token [BT], where its codes start and end; -1 where there is no such expert."""
    if DENSE:
        expert = tl.where(row_mask, slot, -1)
    else:
        expert = tl.load(indices + rows * K + slot, mask=row_mask, other=-1).to(tl.int32)
    known = (expert >= 0) & (expert < n)
    expert = tl.where(known, expert, -1)
    start = tl.load(starts + expert, mask=known, other=0)
    end = tl.load(starts + expert + 1, mask=known, other=0)
    return expert, start, end


@triton.jit
def block_row(B, starts, slot, start, end, p, cols, col_mask, d, DENSE: tl.constexpr):
    """Row p of each token's expert: [1, BD] where all tokens share it, else [BT, BD]; 0 past its rank."""
    if DENSE:
        slots = slot + tl.zeros([1], tl.int32)
        start, end = tl.load(starts + slots), tl.load(starts + slots + 1)
    at = start + p
    mask = (at < end)[:, None] & col_mask[None, :]
    return tl.load(B + at[:, None] * d + cols[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def expand(
    h,
    B,
    starts,
    slot,
    expert,
    start,
    end,
    rows,
    row_mask,
    cols,
    col_mask,
    R,
    d,
    RMAX: tl.constexpr,
    DENSE: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """v of one slot: [BT, BD]; not a number where an index names no expert."""
    v = tl.zeros([BT, BD], tl.float32)
    for p in range(RMAX):
        coefficient = tl.load(h + rows * R + start + p, mask=start + p < end, other=0.0).to(tl.float32)
        v += coefficient[:, None] * block_row(B, starts, slot, start, end, p, cols, col_mask, d, DENSE)
    if not DENSE:
        v = tl.where((row_mask & (expert < 0))[:, None], float("nan"), v)
    return v


@triton.jit
def others_of(h, B, owner, expert, rows, row_mask, cols, col_mask, R, d, BT: tl.constexpr, BD: tl.constexpr):
    """Sum of the other experts' outputs from their own codes: [BT, BD]; slow, exact where they are nearly silent."""
    v = tl.zeros([BT, BD], tl.float32)
    for q in range(R):
        theirs = row_mask & (tl.load(owner + q) != expert)
        coefficient = tl.load(h + rows * R + q, mask=theirs, other=0.0).to(tl.float32)
        row = tl.load(B + q * d + cols, mask=col_mask, other=0.0).to(tl.float32)
        v += coefficient[:, None] * row[None, :]
    return v


@triton.jit
def sums_over_columns(
    tile, B, starts, slot, start, end, cols, col_mask, out, places, live, d, RMAX: tl.constexpr, DENSE: tl.constexpr
):
    """Store Σ_columns tile · B_p of each token's expert: one partial sum a place and row p."""
    for p in range(RMAX):
        row = block_row(B, starts, slot, start, end, p, cols, col_mask, d, DENSE)
        tl.store(out + places * RMAX + p, tl.sum(tile * row, 1), mask=live)
