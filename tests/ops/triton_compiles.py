"""Compile every Triton kernel for a Hopper GPU, which needs none: the interpreter accepts code that the compiler refuses.

    python tests/ops/triton_compiles.py

Prints each kernel's registers, and bytes of stack that hold what did not fit them.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from radargate.ops.triton import relating, turning
from radargate.ops.triton.launch import BLOCKS

INTEGERS = ("tokens", "R", "d", "n", "tiles")
TYPES = {**dict.fromkeys(INTEGERS, "i32"), "indices": "*i64", "starts": "*i32", "owner": "*i32", "others": "fp32"}
FEW = {"BT": 1, "BD": BLOCKS.few_columns}
MANY = {"BT": BLOCKS.tokens, "BD": BLOCKS.columns}
SIZES = {"K": 2, "RMAX": 8, "RANK": 8}
PRODUCTS = {"PADDED": 16, "PRECISION": BLOCKS.precision}


def compiled(kernel, types, constants, warps):
    """The kernel as a binary for compute capability 9.0."""
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "*fp32") for n in names}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] == "*" or n in ("R", "d")
    }
    source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()}, aligned)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]


def resources(binary):
    """What cuobjdump says: registers and stack, where it came with Triton."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        return "no cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    return " ".join(re.findall(r"(?:REG|STACK):\d+", said))


def cases():
    """Kernel, dtypes, constants and warps of what `radargate.ops.triton.launch` starts."""
    for half, dense in (("*bf16", False), ("*fp32", True)):
        types, common = {**TYPES, "y": half, "out": half, "B": half, "grad": half}, {**SIZES, "DENSE": dense}
        codes = {**types, "grad": "*fp32"}
        for bound, (tile, warps) in itertools.product((False, True), ((FEW, BLOCKS.few_warps), (MANY, BLOCKS.warps))):
            yield turning.turn_kernel, types, {**common, **tile, "ADD": True, "BOUND": bound}, warps
        yield turning.turn_gradients_kernel, types, {**common, **MANY, **PRODUCTS, "BOUND": False}, BLOCKS.warps
        for unit in (False, True):
            few = {**common, **FEW, **PRODUCTS, "PADDED": 8, "UNIT": unit, "DOT": False}
            yield relating.codes_kernel, codes, few, BLOCKS.few_warps
            many = {**common, **PRODUCTS, "UNIT": unit, "DOT": True, "BT": BLOCKS.tokens, "BD": BLOCKS.code_columns}
            yield relating.codes_kernel, codes, many, BLOCKS.warps
            yield relating.codes_gradients_kernel, codes, {**common, **MANY, **PRODUCTS, "UNIT": unit}, BLOCKS.warps
        rest = {**common, "PADDED": 16, "BR": 64, "BD": 64}
        yield relating.rest_gradients_kernel, codes, rest, BLOCKS.warps
        collect = {"K": 2, "RMAX": 8, "WEIGHTED": True, "DENSE": dense, "BT": 16, "BR": 64}
        yield turning.collect_codes_kernel, types, collect, BLOCKS.warps


if __name__ == "__main__":
    for kernel, types, constants, warps in cases():
        said = resources(compiled(kernel, types, constants, warps))
        print(kernel.__name__, types["B"], constants, f"{warps} warps:", said, flush=True)  # noqa: T201
