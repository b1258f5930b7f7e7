"""What a call of the compiled operations is given: the fields of ``call.h``, and tensors as addresses."""

from __future__ import annotations

import ctypes

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
