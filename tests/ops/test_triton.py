"""Triton kernels: where they are chosen, and that they are right where no GPU is (`triton_kernels.py`, interpreted)."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sweeps
from radargate import ops
from radargate.errors import BackendError
from radargate.ops import triton as gpu
from test_ops import problem

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def run(arguments, **environment):
    """Python in a process of its own: Triton decides when it is imported whether it interprets."""
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "RADARGATE_TRITON")}
    path = os.pathsep.join([str(HERE.parent / "src"), str(HERE)])
    env = {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *arguments], env=env, text=True, capture_output=True, cwd=HERE.parent)


@needs_triton
def test_the_kernels_are_the_literal_form():
    interpreting = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    words = ["-m", "pytest", "-p", "no:cacheprovider", str(HERE / "triton_kernels.py")]
    done = run([*words, "--all"] if sweeps.everything else words, **interpreting)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 40


@needs_triton
@pytest.mark.whole
def test_every_kernel_compiles_for_a_hopper_gpu(tmp_path):
    done = run([str(HERE / "triton_compiles.py")], TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("_kernel") > 20
    spilled = [line for line in done.stdout.splitlines() if int((re.findall(r"STACK:(\d+)", line) or ["0"])[0]) > 64]
    assert not spilled, "what does not fit the registers makes a kernel slow"


def test_importing_and_choosing_never_imports_triton():
    code = (
        "import sys; from radargate import ops; ops.choose_backend()\n"
        "assert not {'triton', 'torch._dynamo', 'radargate.ops.triton.operators'} & set(sys.modules)"
    )
    assert run(["-c", code]).returncode == 0


@no_gpu
def test_without_a_gpu_triton_is_refused_with_the_reason_and_auto_does_without(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for device in ("cpu", "cuda"):
        with pytest.raises(BackendError, match="backend='triton'"):
            ops.choose_backend("triton", device)
        assert ops.choose_backend("auto", device)[0] == "codes"
    inputs = problem(3, 5, 6, (4,), dtype=torch.float32)
    with pytest.raises(BackendError, match=r"not installed|need a CUDA device"):
        ops.radar(**inputs, top_k=2, backend="triton")
    h, B, up = torch.randn(4, 6), torch.randn(6, 8), torch.randn(2, 4)
    with pytest.raises(BackendError, match=r"not installed|need a CUDA device"):
        ops.mix(h, B, [3, 3], torch.ones(4, 2), None, torch.randn(4, 2, 2), up, backend="triton")


def test_a_machine_without_triton_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    gpu._available.cache_clear()
    try:
        assert ops.choose_backend("auto", "cuda:0") == (
            "codes",
            "in PyTorch, slot by slot: Triton is not installed (pip install triton)",
        )
    finally:
        gpu._available.cache_clear()


def test_it_can_be_switched_off_and_float64_is_not_its_business(monkeypatch):
    monkeypatch.setenv("RADARGATE_TRITON", "0")
    assert "RADARGATE_TRITON=0" in ops.choose_backend("auto", "cuda")[1]
    monkeypatch.delenv("RADARGATE_TRITON")
    monkeypatch.setattr(gpu, "_available", lambda device, interpreting: (True, "here"))
    assert ops.choose_backend("auto", "cuda", torch.float32) == ("triton", "here")
    assert ops.choose_backend("auto", "cuda", torch.float64)[0] == "codes"
    assert ops.choose_backend("codes", "cuda") == ("codes", "asked for")
    with pytest.raises(BackendError, match="float32, and this is float64"):
        ops.choose_backend("triton", "cuda", torch.float64)


def test_mix_adds_onto_the_base_output_and_takes_mixed_dtypes_everywhere():
    g = torch.Generator().manual_seed(0)
    h, B, up, weights = (torch.randn(*s, generator=g) for s in ((4, 6), (6, 8), (2, 4), (4, 2)))
    rotation, y = torch.randn(4, 2, 2, generator=g), torch.randn(4, 8, generator=g).bfloat16()
    B = B.bfloat16()
    want = ops.mix(h, B.float(), [3, 3], weights, None, rotation, up)
    assert torch.equal(ops.mix(h, B, [3, 3], weights, None, rotation, up), want)
    assert torch.equal(ops.mix(h, B, [3, 3], weights, None, rotation, up, onto=y), y + want.bfloat16())
