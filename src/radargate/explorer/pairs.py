"""How experts relate to each other at a site, before and after they are rotated."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from radargate import ops
from radargate.gates.base import Call, Gate, GateOutput
from radargate.ops.turning import turn_pairs

NUMBERS_AT_ONCE = 1 << 22  # of tokens × experts × width


class Pairs:
    """Cosines and mean outputs of all n experts over tokens, read in chunks so that memory stays small."""

    def __init__(self, n: int, d: int) -> None:
        self.cosines = torch.zeros(2, n, n, dtype=torch.float64)
        self.counts = torch.zeros(n, n, dtype=torch.float64)
        self.means = torch.zeros(2, n, d, dtype=torch.float64)
        self.tokens = 0

    def add(self, gate: Gate, call: Call, gated: GateOutput) -> None:
        """Look at every token of a call."""
        h = gated.codes.h.reshape(-1, *gated.codes.h.shape[call.x.dim() - 1 :])
        x = call.x.reshape(-1, call.x.shape[-1])
        step = max(1, NUMBERS_AT_ONCE // (self.means.shape[1] * self.means.shape[2]))
        for start in range(0, x.shape[0], step):
            part = slice(start, start + step)
            codes = replace(gated.codes, h=h[part], summed=None)
            before = outputs(codes.h, codes.B, codes.ranks)
            after = before
            if gated.turn is not None:
                weights = before.new_ones(before.shape[0], before.shape[1])
                turn = gate.turn(replace(call, x=x[part], codes=codes, real=None), weights, None)
                assert turn is not None
                every = turn.codes.expand(-1, before.shape[1], -1)
                alpha = ops.angles(every, turn.up, None, turn.angle_norm)
                after = turn_pairs(before.flatten(0, 1), alpha.flatten(0, 1)).view_as(before)
            for place, v in enumerate((before.double(), after.double())):
                norm = v.norm(dim=-1, keepdim=True)
                unit = torch.where(norm > 0, v / norm.clamp(min=1e-30), 0.0)
                self.cosines[place] += torch.einsum("tid,tjd->ij", unit, unit).cpu()
                self.means[place] += v.sum(0).cpu()
            alive = (before.norm(dim=-1) > 0).double()
            self.counts += (alive.T @ alive).cpu()
            self.tokens += before.shape[0]

    def cosine(self) -> tuple[Tensor, Tensor]:
        """Mean cosines [n, n] before and after, over tokens where both outputs are not zero."""
        before, after = self.cosines / self.counts.clamp(min=1)
        return before.float(), after.float()

    def plane(self) -> tuple[Tensor, Tensor]:
        """Mean outputs [n, 2] before and after, on the plane through zero that holds most of all of them."""
        means = self.means / max(self.tokens, 1)
        points = means.flatten(0, 1)
        _, _, directions = torch.linalg.svd(points, full_matrices=False)
        # the sign of a direction is arbitrary; this one makes equal traces give equal maps
        signs = torch.sign(directions.gather(1, directions.abs().argmax(1, keepdim=True)))
        flat = points @ (directions * torch.where(signs == 0, 1.0, signs))[:2].T
        flat = torch.nn.functional.pad(flat, (0, 2 - flat.shape[1]))
        before, after = flat.view(2, -1, 2)
        return before.float(), after.float()


def outputs(h: Tensor, B: Tensor, ranks: tuple[int, ...] | None) -> Tensor:
    """v_i of all experts: [tokens, n, d]."""
    if ranks is None:
        return h @ B
    parts = zip(h.split(list(ranks), -1), B.split(list(ranks)), strict=True)
    return torch.stack([a @ b for a, b in parts], 1)
