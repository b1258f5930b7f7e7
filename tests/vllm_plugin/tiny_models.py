"""Tiny random models that vLLM's attention on a CPU can read, and bundles on all seven linears whose gates do something."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import radargate

CONV1D = ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 258,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
    "max_position_embeddings": 1024,
}
EXAMPLES = {"math": ["12 + 7 = 19", "3 * 4"], "law": ["the court held that"], "code": ["def f(x): return x"]}


def save_base(family: str, folder: Path) -> Path:
    """A random model of 2 layers with a tokenizer of bytes."""
    torch.manual_seed(0)
    if family in ("llama", "one-head"):
        heads = {"num_key_value_heads": 1} if family == "one-head" else {}
        model = LlamaForCausalLM(LlamaConfig(**{**SIZES, **heads}))
    elif family == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=1024, vocab_size=258, eos_token_id=1)
        )
    elif family == "qwen2":
        sizes = {**SIZES, "hidden_size": 128}  # its head size is hidden size ÷ heads
        sizes.pop("head_dim")
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
    else:
        kinds = ["sliding_attention", "full_attention"]
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(**SIZES, sliding_window=48, layer_types=kinds, query_pre_attn_scalar=32)
        )
    head = model.get_output_embeddings().weight
    with torch.no_grad():  # answers that one expert more or less changes, and of which the model is sure
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(20 if parameter is head else 4)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, with pad and end tokens and no chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "</s>": 1, **{c: i + 2 for i, c in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def save_adapters(base: Path, root: Path, targets: list[str] = LINEARS) -> dict[str, Path]:
    """Three LoRAs of unequal ranks; the third leaves the last target out."""
    adapters = {}
    for i, (name, rank) in enumerate({"math": 4, "law": 8, "code": 3}.items()):
        torch.manual_seed(i + 1)
        here = targets[:-1] if i == 2 and len(targets) > 1 else targets
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=here)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.1)
        adapters[name] = root / name
        model.save_pretrained(adapters[name])
    return adapters


def save_bundle(base: Path, adapters: dict[str, Path], folder: Path, seed: int = 5, **options) -> Path:
    """A bundle whose gate parameters are random, so that every part of it shows."""
    model = radargate.compose(str(base), adapters, **options)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".radar_gate." in name and "router" not in name:
                parameter.normal_(std=0.1 if "rotation_up" in name else 0.3)
            elif ".router." in name:
                parameter.normal_(std=2.0)
        for name, buffer in model.named_buffers():
            if name.endswith("text_spread") and not buffer:
                buffer.fill_(0.3)
    model.save_pretrained(folder)
    return folder
