"""The same update on low-rank codes, exactly: no tensor of tokens × experts × width exists.

``codes → gate → mix``. The codes h = (x A) ⊙ σ hold everything: v_i = h_i B_i. Only chosen experts are expanded,
and what a gate needs to know about the others is one product, Σ_j v_j = h B.

`rotation_codes` and `mix` each have several forms, exact alike; a table below each says when which one runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from radargate.errors import BackendError
from radargate.ops import by_slot, cpp, decode, shared_basis, triton
from radargate.ops.by_slot import owners
from radargate.ops.reference import unit_rms
from radargate.ops.selection import dense_weights
from radargate.ops.turning import angle

# a product with all experts' B costs as much as expanding the chosen ones one by one where 1 in 5 is chosen
FEW = 5


class Form(NamedTuple):
    """One way to compute a step: the first of a table whose condition holds runs."""

    name: str
    reason: str
    applies: Callable[[Any], bool]
    compute: Callable[[Any], Tensor]


def choose_form(forms: Sequence[Form], step: Any) -> Form:
    """The first form of a table that can take a step."""
    for form in forms:
        if form.applies(step):
            return form
    raise BackendError("no form of this operation takes these tensors.")


def codes(x: Tensor, A: Tensor, scale: Tensor) -> Tensor:
    """h = (x A) ⊙ σ: [..., R] for x [..., d_in], A [R, d_in] and scale [R]."""
    h = F.linear(x, A)
    return h.mul_(scale) if h.dtype == scale.dtype else h * scale


def input_codes(x: Tensor, down: Tensor | None, angle_norm: str = "none") -> Tensor:
    """Rotation codes from the input, x P, one for all experts: [..., 1, r_a]."""
    source = unit_rms(x) if angle_norm == "unit" else x
    return (source if down is None else source @ down).unsqueeze(-2)


class Relating(NamedTuple):
    """One call of `rotation_codes`, as its table looks at it. Names as there, tensors flat."""

    h: Tensor
    B: Tensor
    ranks: Any
    down: Any
    indices: Tensor | None
    reference: str
    angle_norm: str
    total: Tensor | None
    rounding: Tensor | None
    scale: float
    slots: int
    divided: float

    @property
    def unit(self) -> bool:
        """Whether v and its reference are scaled to unit RMS."""
        return self.angle_norm == "unit"

    @property
    def one_matrix(self) -> bool:
        """Whether P is one matrix for all experts."""
        return self.down is not None and self.down.dim() == 2

    @property
    def lacking(self) -> str | None:
        """What the Triton kernels lack for it, whatever the tensors."""
        if self.ranks is None:
            return triton.DENSE_CODES
        if self.reference == "selected" and self.indices is not None:
            return "the kernels relate to all others, not to the selected ones"
        return None if self.rounding is None else "the kernels want every expert's codes"


def _relate_triton(s: Relating) -> Tensor:
    divisor = 1 if s.unit else s.divided / s.scale
    code = triton.rotation_codes(s.h, s.B, s.ranks, s.down, s.indices, s.total, unit=s.unit, others=divisor)
    return code * s.scale if s.unit and s.scale != 1 else code


def _relate_shared(s: Relating) -> Tensor:
    code = shared_basis.rotation_codes(
        s.h, s.B, s.down, indices=s.indices, reference=s.reference, angle_norm=s.angle_norm
    )
    return code if s.scale == 1 else code * s.scale


def _relate_cpp(s: Relating) -> Tensor:
    selected, others = s.reference == "selected", s.divided / s.scale
    given = (s.h, s.B, s.ranks, s.down, s.indices, s.total, s.rounding)
    return cpp.rotation_codes(*given, unit=s.unit, selected=selected, others=others)


def _relate_few(s: Relating) -> Tensor:
    selected, factor = s.reference == "selected", s.scale / s.divided
    return decode.rotation_codes(s.h, s.B, s.ranks, s.down, s.indices, unit=s.unit, selected=selected, factor=factor)


def _relate_by_slot(s: Relating) -> Tensor:
    given = (s.h, s.B, s.ranks, s.down, s.indices, s.total, s.rounding)
    code = by_slot.rotation_codes(*given, reference=s.reference, angle_norm=s.angle_norm, divided=s.divided)
    return code if s.scale == 1 else code * s.scale


RELATING = (
    Form("shared_basis", "dense codes over one basis", lambda s: s.ranks is None, _relate_shared),
    Form(
        "cpp",
        "on a CPU, one P for all: every slot in one pass",
        lambda s: s.one_matrix and cpp.applies(s.h, s.B, s.down, s.total, s.rounding, indices=s.indices),
        _relate_cpp,
    ),
    Form(
        "decode",
        "few tokens, no gradients, one P for all: few calls of PyTorch",
        lambda s: (
            s.one_matrix and s.rounding is None and decode.applies(s.h.shape[0] * s.slots, s.h, s.B, s.down, s.total)
        ),
        _relate_few,
    ),
    Form("by_slot", "everything else", lambda s: True, _relate_by_slot),
)


def rotation_codes(
    h: Tensor,
    B: Tensor,
    ranks: Sequence[int] | None,
    down: Tensor | None,
    *,
    indices: Tensor | None = None,
    reference: str = "all",
    angle_norm: str = "none",
    total: Tensor | None = None,
    rounding: Tensor | None = None,
    scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Rotation codes a_i = (v_i ⊙ Σ_{j≠i} v_j) P of the chosen experts.

    Args:
        h: codes [..., R].
        B: [R, d], the experts' B_i stacked.
        ranks: r_i of each expert, summing to R; None for dense codes h [..., n, q] over a basis B [q, d].
        down: P, [d, r_a] or [n, d, r_a]; None for the identity (full θ_r).
        indices: [..., k] chosen experts; None for all n in order.
        reference: ``"all"`` or ``"selected"``.
        angle_norm: as in `radargate.ops.radar`; ``"tanh"`` acts later, in `mix`.
        total: Σ_j v_j [..., d] if known (merged route: ``x @ merged(A, B, scale)``); only for ``reference="all"``.
        rounding: where h holds the chosen experts' codes only (`chosen_codes`): the length [...] at which total − v is
            rounding. Under unit scaling such a reference counts as none, as the others' own codes are not there.
        scale: the codes are multiplied by it; cheaper than P, which is larger.
        backend: ``"auto"``; ``"codes"`` keeps away from Triton, ``"triton"`` insists on it.

    Returns:
        [..., k, r_a]; in float32 from Triton, else in the inputs' dtype.

    Raises:
        BackendError: Triton was asked for and cannot do this.

    Source: Eq. 8, 20; design of the routes in ``docs/numerics.md``.
    """
    shape = h.shape[:-1] if ranks is not None else h.shape[:-2]
    if ranks is not None:
        h = h.reshape(-1, h.shape[-1])
        indices = None if indices is None else indices.reshape(-1, indices.shape[-1])
    known = None if total is None or reference == "selected" else total.reshape(-1, total.shape[-1])
    # nothing is cut off without a total, or without unit scaling
    cut = None if rounding is None or known is None or angle_norm != "unit" else rounding.reshape(-1)
    slots = len(ranks or ()) if indices is None else indices.shape[-1]
    related = slots if reference == "selected" else len(ranks or ())
    divided = max(related - 1, 1) if angle_norm == "mean" else 1
    options = (reference, angle_norm, known, cut, scale, slots, divided)
    step = Relating(h, B, ranks, down, indices, *options)
    if _triton_serves(backend, h, B, down, known, indices=indices, lacking=step.lacking):
        code = _relate_triton(step)
    else:
        h, B, down, known, cut = alike(h, B, down, known, cut)
        step = step._replace(h=h, B=B, down=down, total=known, rounding=cut)
        code = choose_form(RELATING, step).compute(step)
    return code.view(*shape, *code.shape[-2:])


def _triton_serves(backend: str, h: Tensor, *tensors: Any, **facts: Any) -> bool:
    """Whether the kernels were asked for or are at home here, and can."""
    return (backend == "triton" or h.device.type in triton.devices) and triton.serves(backend, h, *tensors, **facts)


def merged(A: Tensor, B: Tensor, scale: Tensor) -> Tensor:
    """M = Σ_j A_j B_j s_j: [d_in, d], so that Σ_j v_j = x M whatever the number of experts."""
    return (A * scale.unsqueeze(-1)).T @ B


class Mixing(NamedTuple):
    """One call of `mix`, as its table looks at it. Names as there, tensors flat."""

    h: Tensor
    B: Tensor
    ranks: Any
    weights: Tensor
    indices: Tensor | None
    rotation: Any
    up: Any
    angle_norm: str
    onto: Tensor | None

    @property
    def turns(self) -> bool:
        """Whether anything is rotated."""
        return self.rotation is not None and self.up is not None

    @property
    def one_turn(self) -> bool:
        """Whether nothing turns, or every slot has its own code and all share one Q."""
        return not self.turns or (self.up.dim() == 2 and self.rotation.shape[1] == self.weights.shape[1])

    @property
    def expands_few(self) -> bool:
        """Whether so few experts are chosen, and turned by nothing, that expanding them costs less than one product with all."""
        if self.turns or self.indices is None or self.ranks is None:
            return False
        return self.B.shape[0] > FEW * self.indices.shape[-1] * max(self.ranks)


def _no_turn(s: Mixing) -> tuple[Tensor, Tensor]:
    """Rotation codes of rank 0, where nothing turns."""
    return s.h.new_zeros(*s.weights.shape, 0), s.h.new_zeros(0, s.B.shape[-1] // 2)


def _mixes_in_cpp(s: Mixing) -> bool:
    if not (s.expands_few or (s.up is not None and s.up.dim() == 2 and s.turns)):
        return False
    return cpp.applies(s.h, s.B, s.weights, s.rotation, s.up, indices=s.indices)


def _mix_cpp(s: Mixing) -> Tensor:
    rotation, up = (s.rotation, s.up) if s.turns else _no_turn(s)
    onto = s.onto if s.onto is not None and cpp.applies(s.h, s.onto) else None
    update = cpp.mix(s.h, s.B, s.ranks, s.weights, s.indices, rotation, up, bound=s.angle_norm == "tanh", onto=onto)
    return update if onto is not None else _added(update, s.onto)


def _mix_few(s: Mixing) -> Tensor:
    given = (s.h, s.B, s.ranks, s.weights, s.indices, s.rotation, s.up)
    return _added(decode.mix(*given, bound=s.angle_norm == "tanh"), s.onto)


def _mix_shared(s: Mixing) -> Tensor:
    return _added(shared_basis.mix(s.h, s.B, s.weights, s.indices, s.rotation, s.up, s.angle_norm), s.onto)


def _mix_by_slot(s: Mixing) -> Tensor:
    given = (s.h, s.B, s.ranks, s.weights, s.indices, s.rotation, s.up)
    return _added(by_slot.mix(*given, angle_norm=s.angle_norm), s.onto)


def _added(update: Tensor, onto: Tensor | None) -> Tensor:
    return update if onto is None else onto + update.to(onto.dtype)


MIXING = (
    Form("shared_basis", "dense codes over one basis", lambda s: s.ranks is None, _mix_shared),
    Form("cpp", "on a CPU, one Q for all, or few experts of many: one pass", _mixes_in_cpp, _mix_cpp),
    Form(
        "decode",
        "few tokens, no gradients, one Q for all: few calls of PyTorch",
        lambda s: s.one_turn and decode.applies(s.weights.numel(), s.h, s.B, s.weights, s.rotation, s.up),
        _mix_few,
    ),
    Form("by_slot", "everything else", lambda s: True, _mix_by_slot),
)


def mix(
    h: Tensor,
    B: Tensor,
    ranks: Sequence[int] | None,
    weights: Tensor,
    indices: Tensor | None = None,
    rotation: Tensor | None = None,
    up: Tensor | None = None,
    *,
    angle_norm: str = "none",
    onto: Tensor | None = None,
    in_place: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The update Σ_i g_i ṽ_i over the chosen experts, added to the base's output where that is given: [..., d].

    Args:
        h: codes [..., R].
        B: [R, d].
        ranks: r_i of each expert; None for dense codes h [..., n, q] over a basis B [q, d].
        weights: g, [..., k].
        indices: [..., k] chosen experts; None for all n in order.
        rotation: rotation codes [..., k or 1, r_a], from `rotation_codes` or anywhere else; None turns nothing.
        up: Q, [r_a, d // 2] or [n, r_a, d // 2]; angles are ``rotation @ up`` in radians.
        angle_norm: ``"tanh"`` bounds the angles to ±π; other values change nothing here.
        onto: y [..., d], to which the update is added.
        in_place: y may be written to, where nothing asks for gradients.
        backend: as in `rotation_codes`.

    Returns:
        In the dtype of ``onto``, or without it in that of h, B and weights.

    Raises:
        BackendError: Triton was asked for and cannot do this.

    Source: Eq. 13, 18.
    """
    shape, k = weights.shape[:-1], weights.shape[-1]

    def flat(t: Any) -> Any:
        return None if t is None else t.reshape(-1, *t.shape[len(shape) :])

    if ranks is not None and rotation is not None and up is not None and up.dim() == 2 and rotation.shape[-2] != k:
        # one turn for all: the turn of the sum is the sum of the turns
        weighted = h * dense_weights(weights, indices, len(ranks))[..., owners(ranks, h.device)]
        h, ranks, weights, indices = weighted, (B.shape[0],), weights.new_ones(*shape, 1), None
    lacking = triton.DENSE_CODES if ranks is None else "nothing turns" if rotation is None else None
    if _triton_serves(backend, h, B, up, weights, rotation, onto, indices=indices, lacking=lacking):
        chosen = (flat(weights), flat(indices), flat(rotation), up)
        bound = angle_norm == "tanh"
        update = triton.mix(flat(h), B, ranks, *chosen, bound=bound, y=flat(onto), in_place=in_place)  # type: ignore[arg-type]
        return update.view(*shape, B.shape[-1])
    dtype = common_dtype(h, B, weights)
    h, B, weights, rotation, up = alike(h, B, weights, rotation, up)
    step = Mixing(flat(h), B, ranks, flat(weights), flat(indices), flat(rotation), up, angle_norm, flat(onto))
    update = choose_form(MIXING, step).compute(step).view(*shape, B.shape[-1])
    return update.to(dtype) if onto is None else update


def common_dtype(*tensors: Tensor) -> torch.dtype:
    """What PyTorch's promotion makes of them."""
    return functools.reduce(torch.promote_types, [t.dtype for t in tensors])


def alike(*tensors: Tensor | None) -> Any:
    """All in the dtype that they have in common."""
    given = [t for t in tensors if t is not None]
    if all(t.dtype == given[0].dtype for t in given):
        return tensors
    dtype = common_dtype(*given)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def angles(rotation: Tensor, up: Tensor, indices: Tensor | None, angle_norm: str = "none") -> Tensor:
    """Angles in radians [..., k, d // 2] that `mix` turns by; for looking, not for computing the update."""
    shape, k = rotation.shape[:-2], rotation.shape[-2] if indices is None else indices.shape[-1]
    flat = rotation.reshape(-1, *rotation.shape[-2:])
    index = None if indices is None else indices.reshape(-1, k)
    columns = [angle(flat[:, s if flat.shape[1] > 1 else 0], up, index, s, angle_norm) for s in range(k)]
    return torch.stack(columns, 1).view(*shape, k, -1)
