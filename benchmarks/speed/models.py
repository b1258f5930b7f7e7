"""Base models of real shapes with random weights, and random adapters as files, so that every system reads the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from radargate.errors import OptionError

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "llama-3.2-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 8, 16


class Bases:
    """Any number of models over one set of random weights: each system wraps a model of its own, memory holds one."""

    def __init__(self, shape: str, *, layers: int | None, dtype: torch.dtype, device: str) -> None:
        if shape not in SHAPES:
            raise OptionError(f"shape is {shape!r}, expected one of: {', '.join(SHAPES)}.")
        sizes = dict(SHAPES[shape])
        sizes["num_hidden_layers"] = layers or sizes["num_hidden_layers"]
        self.config = LlamaConfig(**sizes, tie_word_embeddings=True, bos_token_id=1, eos_token_id=None, use_cache=False)
        torch.manual_seed(0)
        self.first: Any = LlamaForCausalLM(self.config).to(dtype)  # type: ignore[arg-type]
        self.first = self.first.to(device).eval().requires_grad_(False)

    def new(self) -> LlamaForCausalLM:
        """A model that shares the weights."""
        with torch.device("meta"):
            model = LlamaForCausalLM(self.config)
        model.load_state_dict(self.first.state_dict(), assign=True)
        model.tie_weights()
        model.model.rotary_emb = self.first.model.rotary_emb
        return model.eval().requires_grad_(False)


def write_adapters(bases: Bases, count: int, folder: Path) -> dict[str, str]:
    """Write random adapters on all seven linears; returns name → path. Names are numbers, as X-LoRA wants them."""
    paths = {}
    for i in range(count):
        torch.manual_seed(i + 1)
        # B of the size training leaves, so that no system has zeros to save work on
        config = LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=LINEARS, init_lora_weights=False, task_type="CAUSAL_LM"
        )
        model = get_peft_model(bases.new(), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.01)
        model.save_pretrained(str(folder / str(i)), save_embedding_layers=False)
        paths[str(i)] = str(folder / str(i))
    return paths
