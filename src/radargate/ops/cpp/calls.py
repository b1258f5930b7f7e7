"""What a call of the compiled operations is given: the fields of ``call.h``, and tensors as addresses."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from radargate.errors import BackendError, OptionError
from radargate.ops.cpp import build

SIZES = ("tokens", "experts", "slots", "width", "codes", "rank", "wide", "threads")
OPTIONS = ("unit", "selected", "bound")
ARRAYS = (
    "h",
    "B",
    "total",
    "rounding",
    "down",
    "up",
    "weights",
    "rotation",
    "grad",
    "onto",
    "code",
    "scales",
    "update",
    "d_h",
    "d_B",
    "d_total",
    "d_down",
    "d_weights",
    "d_rotation",
    "d_up",
)


class Call(ctypes.Structure):
    """One call; the same fields in the same order stand in ``call.h``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in (*SIZES, *OPTIONS)),
        ("others", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("starts", "indices", *ARRAYS)),
    )


@functools.lru_cache(maxsize=4096)
def starts(ranks: tuple[int, ...]) -> Any:
    """Where each expert's codes begin, and their end."""
    return (ctypes.c_int64 * (len(ranks) + 1))(*accumulate(ranks, initial=0))


def run(
    operation: str,
    h: Tensor,
    B: Tensor,
    ranks: Sequence[int],
    slots: int,
    rank: int,
    indices: Tensor | None,
    arrays: Mapping[str, Tensor | None],
    **options: float,
) -> None:
    """Call a compiled operation on contiguous tensors.

    Raises:
        OptionError: an index that names no expert.
        BackendError: there is no library, or no memory.
    """
    library, reason = build.library()
    if library is None:
        raise BackendError(f"The compiled operations are not there: {reason}. Use radargate.ops instead.")
    begin = starts(tuple(ranks))
    call = Call(
        tokens=h.shape[0],
        experts=len(ranks),
        slots=slots,
        width=B.shape[1],
        codes=B.shape[0],
        rank=rank,
        wide=h.dtype == torch.float64,
        threads=torch.get_num_threads(),
        starts=ctypes.addressof(begin),
        indices=None if indices is None else indices.data_ptr(),
        h=h.data_ptr(),
        B=B.data_ptr(),
        **options,
        **{name: t.data_ptr() for name, t in arrays.items() if t is not None},
    )
    outcome = getattr(library, operation)(ctypes.byref(call))
    if outcome == 1:
        raise OptionError(f"indices name experts outside 0 to {len(ranks) - 1}.")
    if outcome:
        raise BackendError(f"Not enough memory for {operation} on {h.shape[0]} tokens. Use shorter batches.")
