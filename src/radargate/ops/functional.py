"""The whole update as one function, from tensors alone: what independent checks and other code may call."""

from __future__ import annotations

import torch
from torch import Tensor

from radargate.errors import OptionError
from radargate.ops import reference as reference_form
from radargate.ops.backend import choose_backend, compute_dtype
from radargate.ops.choices import ANGLE_NORMS, GATE_INPUTS, NORMS, REFERENCES, ROTATION_INPUTS, ROUTES, check_choice
from radargate.ops.low_rank import codes, input_codes, merged, mix, rotation_codes
from radargate.ops.outputs import expert_logits, rotated_logits
from radargate.ops.selection import check_selection, select


def radar(
    x: Tensor,
    A: list[Tensor],
    B: list[Tensor],
    stretch: Tensor | None = None,
    down: Tensor | None = None,
    up: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    indices: Tensor | None = None,
    top_k: int | None = None,
    temperature: float = 1.0,
    renormalize: str = "auto",
    angle_norm: str = "none",
    reference: str = "all",
    gate_input: str = "input",
    norm: str = "layer",
    rotation_input: str = "experts",
    rotate_output: bool = True,
    route: str = "direct",
    backend: str = "auto",
) -> Tensor:
    """The update Σ_i g_i ṽ_i that a gate adds to ``x W``: [..., d_out].

    Args:
        x: [..., d_in].
        A: n tensors [r_i, d_in].
        B: n tensors [d_out, r_i] with the LoRA scale folded in.
        stretch: θ_s, [n, d_in], or [n * d_out, n] where ``gate_input`` is not ``"input"``; None weighs all alike.
        down: P, [d_out, r_a] ([d_in, r_a] for ``rotation_input="input"``), [n, …] for one per expert, or None
            where ``up`` is a full θ_r.
        up: Q, [r_a, d_out // 2] or [n, r_a, d_out // 2]; None for stretch only.
        weights: [..., n], or [..., k] with ``indices``, instead of a stretch gate.
        indices: [..., k] fixes the chosen experts.
        top_k: experts kept per token; None keeps all.
        temperature: τ > 0 of the softmax.
        renormalize: ``"auto"``, ``"always"`` or ``"never"`` scale kept weights to sum 1 (auto: for k > 1);
            ``"straight_through"``: one expert of weight 1, see `radargate.ops.select`.
        angle_norm: ``"none"``, ``"unit"``, ``"mean"`` or ``"tanh"``.
        reference: ``"all"`` others, or the other ``"selected"`` ones.
        gate_input: weights from ``"input"`` x, from concatenated ``"experts"`` outputs or ``"rotated"`` outputs.
        norm: ``"layer"`` or ``"rms"``, for concatenated outputs.
        rotation_input: rotation codes from ``"experts"`` (v_i ⊙ Σ_{j≠i} v_j) or from the ``"input"`` x.
        rotate_output: False weighs the unrotated outputs (App. C.2 as printed).
        route: how rotation codes are found: ``"direct"`` or ``"merged"``; both exact.
        backend: ``"literal"``, ``"codes"``, ``"triton"`` or ``"auto"``.

    Returns:
        [..., d_out] in the promoted dtype of x and float32, or wider.

    Raises:
        OptionError: an option or combination that cannot work.
        BackendError: the requested backend cannot be used here.

    Source: arXiv 2505.23184, Eq. 1, 4, 13, 20; see `radargate.ops.reference`, which defines the result.
    """
    n = len(A)
    _check_radar(n, A, B, stretch, down, up, gate_input, rotation_input, angle_norm, reference, norm, route)
    check_selection(n, top_k, temperature, renormalize, None if up is None else reference)
    if weights is not None and indices is None and top_k is not None:
        raise OptionError("weights are given for all experts, so top_k has no meaning; give indices instead.")
    dtype = compute_dtype(x, *A, *B)
    name, _ = choose_backend(backend, x.device.type, dtype)
    x, A, B = x.to(dtype), [a.to(dtype) for a in A], [b.to(dtype) for b in B]
    stretch, down, up, weights = (None if t is None else t.to(dtype) for t in (stretch, down, up, weights))
    if name == "literal":
        return reference_form.radar(
            x,
            A,
            B,
            stretch,
            down,
            up,
            weights=weights,
            indices=indices,
            top_k=top_k,
            temperature=temperature,
            renormalize=renormalize,
            angle_norm=angle_norm,
            reference=reference,
            gate_input=gate_input,
            norm=norm,
            rotation_input=rotation_input,
            rotate_output=rotate_output,
        )
    ranks = tuple(a.shape[0] for a in A)
    stacked_A, stacked_B = torch.cat(A), torch.cat([b.T for b in B])
    h = codes(x, stacked_A, x.new_ones(sum(ranks)))
    relates = up is not None and rotation_input == "experts"  # routes matter only to codes from v ⊙ reference
    total = x @ merged(stacked_A, stacked_B, x.new_ones(sum(ranks))) if relates and route == "merged" else None

    def code(index: Tensor | None, reference: str = reference) -> Tensor:
        if rotation_input == "input":
            return input_codes(x, down, angle_norm)
        return rotation_codes(
            h,
            stacked_B,
            ranks,
            down,
            indices=index,
            reference=reference,
            angle_norm=angle_norm,
            total=total,
            backend=backend,
        )

    if weights is None:
        if stretch is None:
            logits = x.new_zeros(*x.shape[:-1], n)
        elif gate_input == "input":
            logits = x @ stretch.T
        elif gate_input == "experts" or up is None:
            logits = expert_logits(h, stacked_B, ranks, stretch, norm)
        else:
            logits = rotated_logits(h, stacked_B, ranks, stretch, code(None), up, angle_norm=angle_norm, norm=norm)
        weights, indices = select(logits, top_k, temperature, renormalize, indices)
    if up is None or not rotate_output:
        return mix(h, stacked_B, ranks, weights, indices, backend=backend)
    return mix(h, stacked_B, ranks, weights, indices, code(indices), up, angle_norm=angle_norm, backend=backend)


def _check_radar(
    n: int,
    A: list[Tensor],
    B: list[Tensor],
    stretch: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    gate_input: str,
    rotation_input: str,
    angle_norm: str,
    reference: str,
    norm: str,
    route: str,
) -> None:
    if n == 0 or len(B) != n:
        raise OptionError(f"found {n} A and {len(B)} B, expected the same number of each, at least one.")
    for i, (a, b) in enumerate(zip(A, B, strict=True)):
        if a.shape[0] != b.shape[1] or a.shape[1] != A[0].shape[1] or b.shape[0] != B[0].shape[0]:
            raise OptionError(
                f"expert {i}: A is {tuple(a.shape)} and B is {tuple(b.shape)}, expected [r, {A[0].shape[1]}] "
                f"and [{B[0].shape[0]}, r]."
            )
    for option, value, known in (
        ("gate_input", gate_input, GATE_INPUTS),
        ("rotation_input", rotation_input, ROTATION_INPUTS),
        ("angle_norm", angle_norm, ANGLE_NORMS),
        ("reference", reference, REFERENCES),
        ("norm", norm, NORMS),
        ("route", route, ROUTES),
    ):
        check_choice(option, value, known)
    if gate_input == "rotated" and reference == "selected" and up is not None:
        raise OptionError(
            "gate_input='rotated' chooses experts from rotated outputs, and reference='selected' rotates by the "
            "chosen experts: a circle. Use reference='all'."
        )
    d_in, d = A[0].shape[1], B[0].shape[0]
    if stretch is not None:
        expected = (n, d_in) if gate_input == "input" else (n * d, n)
        if tuple(stretch.shape) != expected:
            raise OptionError(f"stretch is {tuple(stretch.shape)}, expected {expected}.")
    if up is not None and up.shape[-1] != d // 2:
        raise OptionError(f"up has {up.shape[-1]} angles, expected d_out // 2 = {d // 2}.")
    if down is not None and up is None:
        raise OptionError("down is given without up; rotation needs both (or a full up alone).")
    if down is not None and down.shape[-2] != (d_in if rotation_input == "input" else d):
        raise OptionError(f"down is {tuple(down.shape)}, expected {d_in if rotation_input == 'input' else d} rows.")
    if route == "merged" and reference == "selected":
        raise OptionError("route='merged' knows the sum over all experts only; use reference='all' or route='direct'.")
    if route == "table" and down is not None and down.dim() == 3:
        raise OptionError("route='table' needs one P shared by all experts; use route='direct'.")
