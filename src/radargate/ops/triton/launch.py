"""Launches the kernels: block sizes, grids, scratch for partial sums, and the fixed order in which those are added up.

Imports Triton, so it is itself imported only where a kernel runs. How work is divided depends on sizes alone, and no
sum is atomic: results are the same bits from run to run. Nothing here waits for the device.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from radargate.ops.triton.relating import codes_gradients_kernel, codes_kernel, rest_gradients_kernel
from radargate.ops.triton.turning import collect_codes_kernel, turn_gradients_kernel, turn_kernel

SMALLEST_DOT = 16  # rows and columns of a matrix unit's operands


@dataclass
class Blocks:
    """Tokens and columns of a tile, and the warps that work on it: as large as fits the registers of compute capability 9.0.

    Attributes:
        few: most tokens that are taken one a program (decode), their columns spread over programs.
        tokens: tokens of a tile where there are many; a power of two, at least 16.
        columns: columns of a tile; a power of two, at least 32.
        few_columns: the same where there are few tokens.
        code_columns: the same for rotation codes, whose kernel needs the most registers.
        programs: about how many programs gradients are divided into.
        precision: of the products of float32 on matrix units: ``"tf32x3"`` loses about one digit in binary, ``"ieee"`` none.
    """

    few: int = 15
    tokens: int = 16
    columns: int = 128
    few_columns: int = 256
    code_columns: int = 64
    programs: int = 1024
    warps: int = 8
    few_warps: int = 4
    precision: str = "tf32x3"


BLOCKS = Blocks()


@functools.cache
def layout(ranks: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each expert's codes begin [n + 1], and the expert each code belongs to [R]; made once a device."""
    starts = [sum(ranks[:i]) for i in range(len(ranks) + 1)]
    owner = [i for i, r in enumerate(ranks) for _ in range(r)]
    return (
        torch.tensor(starts, dtype=torch.int32, device=device),
        torch.tensor(owner, dtype=torch.int32, device=device),
    )


def turn(
    y: Tensor | None,
    h: Tensor,
    B: Tensor,
    weights: Tensor,
    rotation: Tensor,
    up: Tensor,
    indices: Tensor | None,
    ranks: Sequence[int],
    bound: bool,
    out: Tensor,
) -> None:
    """Write y + Σ_s g_s R(a_s Q) v_s into ``out`` [tokens, d], which may be y itself."""
    tokens, d = out.shape
    if tokens == 0:
        return
    starts, _ = layout(tuple(ranks), h.device)
    few = tokens <= BLOCKS.few
    rows, columns = (1, BLOCKS.few_columns) if few else (BLOCKS.tokens, BLOCKS.columns)
    columns = min(columns, _block(d, 2))
    turn_kernel[triton.cdiv(tokens, rows), triton.cdiv(d, columns)](
        _or(y, out),
        h,
        B,
        weights,
        rotation,
        up,
        _or(indices, starts),
        starts,
        out,
        tokens,
        B.shape[0],
        d,
        len(ranks),
        K=weights.shape[1],
        RMAX=max(ranks),
        RANK=up.shape[0],
        ADD=y is not None,
        DENSE=indices is None,
        BOUND=bound,
        BT=rows,
        BD=columns,
        **_warps(few),
    )


def turn_gradients(
    grad: Tensor,
    h: Tensor,
    B: Tensor,
    weights: Tensor,
    rotation: Tensor,
    up: Tensor,
    indices: Tensor | None,
    ranks: Sequence[int],
    bound: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to h, the weights, the rotation codes and Q, in their dtypes."""
    (tokens, k), d, (rank, half) = weights.shape, B.shape[1], up.shape
    if tokens == 0:
        return torch.zeros_like(h), torch.zeros_like(weights), torch.zeros_like(rotation), torch.zeros_like(up)
    starts, _ = layout(tuple(ranks), h.device)
    columns, groups, tiles = _division(tokens, d)
    blocks = triton.cdiv(d, columns)
    d_v = _scratch(h, blocks, tokens, k, max(ranks))
    d_rotation = _scratch(h, blocks, tokens, k, rank)
    d_up = _scratch(h, groups, rank, half)
    turn_gradients_kernel[blocks, groups](
        grad,
        h,
        B,
        weights,
        rotation,
        up,
        _or(indices, starts),
        starts,
        d_v,
        d_rotation,
        d_up,
        tokens,
        B.shape[0],
        d,
        len(ranks),
        tiles,
        K=k,
        RMAX=max(ranks),
        RANK=rank,
        PADDED=_block(rank),
        DENSE=indices is None,
        BOUND=bound,
        PRECISION=BLOCKS.precision,
        BT=BLOCKS.tokens,
        BD=columns,
        **_warps(),
    )
    found = d_v.sum(0)
    d_h = h.new_zeros(h.shape, dtype=torch.float32)
    _collect(found, weights, indices, ranks, d_h)
    d_weights = (found * _own_codes(h, indices, ranks)).sum(-1)
    return d_h.to(h.dtype), d_weights.to(weights.dtype), d_rotation.sum(0).to(rotation.dtype), d_up.sum(0).to(up.dtype)


def rotation_codes(
    h: Tensor,
    B: Tensor,
    total: Tensor | None,
    down: Tensor,
    indices: Tensor | None,
    ranks: Sequence[int],
    unit: bool,
    others: float,
) -> tuple[Tensor, Tensor]:
    """Rotation codes [tokens, k, r_a] in float32, and what their gradients need: scales [tokens, k, 3], or [0]."""
    tokens, k = h.shape[0], len(ranks) if indices is None else indices.shape[1]
    d, rank = down.shape
    code = _scratch(h, tokens, k, rank)
    scales = _scratch(h, tokens, k, 3) if unit else _scratch(h, 0)
    if tokens == 0:
        return code, scales
    starts, owner = layout(tuple(ranks), h.device)
    few = tokens <= BLOCKS.few
    rows, columns = (1, BLOCKS.few_columns) if few else (BLOCKS.tokens, BLOCKS.code_columns)
    codes_kernel[triton.cdiv(tokens, rows), k](
        h,
        B,
        _everyone(h, B) if total is None else total,
        down,
        _or(indices, starts),
        starts,
        owner,
        code,
        scales,
        tokens,
        B.shape[0],
        d,
        len(ranks),
        others,
        K=k,
        RMAX=max(ranks),
        RANK=rank,
        PADDED=_block(rank, 1 if few else SMALLEST_DOT),
        UNIT=unit,
        DENSE=indices is None,
        DOT=not few,
        PRECISION=BLOCKS.precision,
        BT=rows,
        BD=min(columns, _block(d)),
        **_warps(few),
    )
    return code, scales


def rotation_codes_gradients(
    grad: Tensor,
    h: Tensor,
    B: Tensor,
    total: Tensor | None,
    down: Tensor,
    indices: Tensor | None,
    code: Tensor,
    scales: Tensor,
    ranks: Sequence[int],
    unit: bool,
    others: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to h, P and the total (empty where none was given), in their dtypes."""
    (tokens, k, rank), d, given = grad.shape, down.shape[0], total is not None
    d_total = _scratch(h, tokens, d)
    if tokens == 0:
        d_total = d_total.to(total.dtype) if total is not None else _scratch(h, 0)
        return torch.zeros_like(h), torch.zeros_like(down), d_total
    starts, owner = layout(tuple(ranks), h.device)
    everyone = _everyone(h, B) if total is None else total
    columns, groups, tiles = _division(tokens, d)
    blocks = triton.cdiv(d, columns)
    d_v = _scratch(h, blocks, tokens, k, max(ranks))
    d_down = _scratch(h, groups, d, rank)
    reach = (grad.float() * code).sum(-1) / d if unit else scales
    sizes = {"K": k, "RMAX": max(ranks), "RANK": rank, "PADDED": _block(rank), "DENSE": indices is None}
    codes_gradients_kernel[blocks, groups](
        grad,
        h,
        B,
        everyone,
        down,
        _or(indices, starts),
        starts,
        owner,
        scales,
        reach,
        d_v,
        d_total,
        d_down,
        tokens,
        B.shape[0],
        d,
        len(ranks),
        others,
        tiles,
        **sizes,
        UNIT=unit,
        PRECISION=BLOCKS.precision,
        BT=BLOCKS.tokens,
        BD=columns,
        **_warps(),
    )
    d_h = h.new_zeros(h.shape, dtype=torch.float32) if given else d_total @ B.float().T
    if unit:
        rest_gradients_kernel[(tokens,)](
            grad,
            h,
            B,
            down,
            _or(indices, starts),
            starts,
            owner,
            scales,
            reach,
            d_h,
            tokens,
            B.shape[0],
            d,
            len(ranks),
            **sizes,
            BR=min(64, _block(B.shape[0])),
            BD=min(64, columns),
            **_warps(),
        )
    _collect(d_v.sum(0), None, indices, ranks, d_h)
    d_total = d_total.to(total.dtype) if total is not None else _scratch(h, 0)
    return d_h.to(h.dtype), d_down.sum(0).to(down.dtype), d_total


def _collect(found: Tensor, weights: Tensor | None, indices: Tensor | None, ranks: Sequence[int], d_h: Tensor) -> None:
    starts, owner = layout(tuple(ranks), d_h.device)
    (tokens, codes), columns = d_h.shape, min(64, _block(d_h.shape[1]))
    collect_codes_kernel[triton.cdiv(tokens, SMALLEST_DOT), triton.cdiv(codes, columns)](
        found,
        _or(weights, found),
        _or(indices, starts),
        owner,
        starts,
        d_h,
        tokens,
        codes,
        len(ranks),
        K=found.shape[1],
        RMAX=found.shape[2],
        WEIGHTED=weights is not None,
        DENSE=indices is None,
        BT=SMALLEST_DOT,
        BR=columns,
        **_warps(),
    )


def _own_codes(h: Tensor, indices: Tensor | None, ranks: Sequence[int]) -> Tensor:
    """Each slot's expert's own codes, 0 past its rank: [tokens or 1, k, RMAX] in float32."""
    starts, _ = layout(tuple(ranks), h.device)
    slots = starts[:-1].unsqueeze(0) if indices is None else starts[:-1][indices]
    ends = starts[1:].unsqueeze(0) if indices is None else starts[1:][indices]
    at = slots.unsqueeze(-1) + torch.arange(max(ranks), device=h.device)
    places = at.clamp(max=h.shape[1] - 1).long().expand(h.shape[0], -1, -1)
    mine = h.gather(1, places.flatten(1)).view(places.shape).float()
    return mine.masked_fill(at >= ends.unsqueeze(-1), 0.0)


def _everyone(h: Tensor, B: Tensor) -> Tensor:
    return h.float() @ B.float()


def _division(tokens: int, d: int) -> tuple[int, int, int]:
    """Columns of a tile, groups of tokens, and tiles of tokens in each group."""
    columns = min(BLOCKS.columns, _block(d, 2 * SMALLEST_DOT))
    tiles = triton.cdiv(tokens, BLOCKS.tokens)
    groups = min(tiles, max(1, BLOCKS.programs // triton.cdiv(d, columns)))
    each = triton.cdiv(tiles, groups)
    return columns, triton.cdiv(tiles, each), each


def _block(size: int, least: int = SMALLEST_DOT) -> int:
    return max(least, triton.next_power_of_2(size))


def _warps(few: bool = False) -> dict[str, Any]:
    return {"num_warps": BLOCKS.few_warps if few else BLOCKS.warps, "enable_fp_fusion": True}


def _scratch(like: Tensor, *size: int) -> Tensor:
    return torch.empty(size, dtype=torch.float32, device=like.device)


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer for an argument that the kernel will not read."""
    return other if tensor is None else tensor
