"""A plain LoRA as a GGUF file, for llama.cpp (``--lora FILE``)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from radargate.errors import OptionError
from radargate.experts.adapters import read_adapter
from radargate.io.disk import writing

# transformers' model_type → llama.cpp's architecture
KNOWN = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "llama": "llama",
    "mistral": "llama",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}


def gguf_names(config: Any, sites: Iterable[str]) -> dict[str, str]:
    """Site → what llama.cpp calls its weight, such as ``blk.0.attn_q.weight``.

    Args:
        config: of the base model.
        sites: names in transformers.

    Raises:
        OptionError: the architecture is not among those whose layout is known here, or it has no such weight.
    """
    import gguf

    text = config.get_text_config()
    if text.model_type not in KNOWN:
        raise OptionError(
            f"how llama.cpp lays out a base of type {text.model_type!r} is not known here, only: {', '.join(KNOWN)}. Save it as a PEFT adapter (`to` lora)."
        )
    architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == KNOWN[text.model_type])
    table = gguf.get_tensor_name_map(architecture, text.num_hidden_layers)
    names: dict[str, str] = {}
    for site in sites:
        name = table.get_name(f"{site}.weight", try_suffixes=(".weight",))
        if name is None:
            raise OptionError(
                f"llama.cpp's {KNOWN[text.model_type]!r} has no weight for {site}. Save it as a PEFT adapter (`to` lora), or leave that site out."
            )
        if name == "output.weight" and text.tie_word_embeddings:
            raise OptionError(
                f"{site} shares its weight with the input embeddings, which llama.cpp adapts for neither alone. Save it as a PEFT adapter (`to` lora)."
            )
        names[site] = name
    return names


def write_gguf(adapter: str | Path, file: str | Path, config: Any) -> None:
    """Write a PEFT LoRA folder as a GGUF adapter, in float32.

    llama.cpp scales every site by alpha / rank with one alpha for all; where ranks or scales differ, B takes up the difference.
    Its Llama models keep the two rotary halves of each head interleaved, so rows of B at queries and keys are reordered alike.

    Args:
        adapter: the folder.
        file: what is written, whole or not at all.
        config: of the base model.

    Raises:
        OptionError: as `gguf_names`.
        AdapterError: the folder holds no plain LoRA.
        StorageError: the file cannot be written.
    """
    import gguf

    read, file = read_adapter("lora", adapter), Path(file)
    names = gguf_names(config, read.sites)
    text = config.get_text_config()
    alpha = float(max(site.rank for site in read.sites.values()))
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with writing("the GGUF adapter", file):
        try:
            writer = gguf.GGUFWriter(str(temporary), KNOWN[text.model_type])
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
            for site, name in names.items():
                A, B = read.read(site)
                B = B.double() * (read.sites[site].scale * read.sites[site].rank / alpha)
                if KNOWN[text.model_type] == "llama":
                    B = interleaved(B, _heads(name, text))
                writer.add_tensor(f"{name}.lora_a", _array(A))
                writer.add_tensor(f"{name}.lora_b", _array(B))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)


def interleaved(B: Tensor, heads: int | None) -> Tensor:
    """Rows [d_out, r] in llama.cpp's order of Llama's queries and keys: (half, place) → (place, half) in each head.

    None for ``heads`` leaves them.
    """
    if heads is None:
        return B
    return B.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _heads(name: str, text: Any) -> int | None:
    if ".attn_q." in name:
        return int(text.num_attention_heads)
    return int(text.num_key_value_heads) if ".attn_k." in name else None


def _array(values: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(values.to("cpu", torch.float32).numpy())
