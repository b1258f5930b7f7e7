"""A gate of one's own, as CONTRIBUTING shows it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import radargate
from radargate.composition.composing import radar_layers
from radargate.errors import OptionError
from radargate.gates import GATES

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
IMPORTS = """from __future__ import annotations
from dataclasses import dataclass
from typing import Any
import torch.nn.functional as F
from torch import Tensor
from radargate import ops
from radargate.gates.base import Call, Gate, GateSite
from radargate.registry import bounded
"""


def test_the_gate_that_contributing_shows_weighs_by_its_equation(zoo, load_tiny, tmp_path, monkeypatch):
    shown = re.search(r"```python\n(class CosineGate.+?)```", PAGE.read_text(), re.S)
    (tmp_path / "cosine_gate.py").write_text(IMPORTS + shown[1])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(GATES, "_entries", {**GATES._entries, "cosine": "cosine_gate:CosineGate"})
    adapters = zoo["llama"]["adapters"]
    gate = radar_layers(radargate.compose(load_tiny(), adapters, gate="cosine", temperature=0.5))[0].gate("default")
    x = torch.randn(5, gate.site.d_in)
    weights, _ = gate.weigh(SimpleNamespace(x=x, top_k=None, multipliers=None))
    cosines = torch.cosine_similarity(x[:, None], gate.softmax_theta[None], dim=-1)
    torch.testing.assert_close(weights, (cosines / 0.5).softmax(-1))
    with pytest.raises(OptionError, match="temperature is 0, expected a number above 0"):
        radargate.compose(load_tiny(), adapters, gate="cosine", temperature=0)
