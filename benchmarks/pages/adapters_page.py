"""docs/adapters.md: how adapters of every kind are answered, made by giving one of each to `radargate.compose`."""

from __future__ import annotations

import codecs
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from radargate.errors import RadarGateError
from radargate.experts.adapters import read_adapter
from radargate.experts.fit import fit
from radargate.report.table import markdown

WEIGHTS, CONFIG, PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
Tensors = dict[str, torch.Tensor]


def page() -> str:
    """The page."""
    with tempfile.TemporaryDirectory() as work:
        rows = [[kind, _answer(folder, base, Path(work))] for kind, folder, base in _cases(Path(work))]
    return (
        "\n\n".join(
            [
                "# Adapters from anywhere",
                "What RadarGate says to an adapter of each kind, on a tiny Llama: `radargate doctor BASE ADAPTER…` prints the same. Nothing in a file is "
                "executed or imported. Made by `make pages`, which gives one of each kind to the reader.",
                markdown(["adapter", "answer"], rows),
                "A trained head (`modules_to_save`) is kept where all experts agree on one, or `head` names whose: see "
                "[which models](compatibility.md#which-models). Hostile files are another matter: [SECURITY.md](../SECURITY.md).",
            ]
        )
        + "\n"
    )


def _base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).eval()


def _answer(folder: Path, base: torch.nn.Module, work: Path) -> str:
    try:
        notes = fit(read_adapter("law", folder), base).notes
    except RadarGateError as error:
        text = str(error).removeprefix("adapter 'law': ").removeprefix("adapter 'law' ").replace(f"{work}/", "")
        return "refused: " + re.sub(r"\s+", " ", text).replace("|", "\\|")
    return ": ".join(["loads", *(["; ".join(notes)] if notes else [])])


def _cases(work: Path) -> list[tuple[str, Path, torch.nn.Module]]:
    """Kind, folder and base."""
    base = _base()

    def adapter(name: str, model: Any = None, **config: Any) -> Path:
        torch.manual_seed(1)
        made = get_peft_model(model or _base(), LoraConfig(r=2, init_lora_weights=False, **config))
        made.save_pretrained(str(work / name), save_embedding_layers=config.pop("saves", "auto"))
        return work / name

    plain = adapter("plain", target_modules=["q_proj", "v_proj"])

    def changed(
        name: str,
        rename: Callable[[str], str] = str,
        turn: Callable[[torch.Tensor], torch.Tensor] = lambda t: t,
        keep: Callable[[str], bool] = lambda n: True,
        add: Tensors | None = None,
        file: str = WEIGHTS,
        **config: Any,
    ) -> Path:
        folder = work / name
        shutil.copytree(plain, folder)
        tensors = {rename(k): turn(v).contiguous() for k, v in load_file(folder / WEIGHTS).items() if keep(k)}
        (folder / WEIGHTS).unlink()
        save_file({**tensors, **(add or {})}, folder / file, metadata={"format": "pt"})
        told = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**told, **config}))
        return folder

    marked = changed("marked")
    (marked / CONFIG).write_bytes(codecs.BOM_UTF8 + (marked / CONFIG).read_bytes())
    wide = changed("wide")
    (wide / CONFIG).write_bytes((wide / CONFIG).read_text().encode("utf-16"))
    parent = work / "parent"
    shutil.copytree(plain, parent / "law")
    copy = base.state_dict()["lm_head.weight"].clone()
    longer = torch.cat([copy, copy[:1]])
    head = f"{PREFIX}lm_head.weight"
    folders = {
        "saved by PEFT": plain,
        "saved from a model under `torch.compile`": changed("compiled", lambda k: "_orig_mod." + k),
        "saved under DDP": changed("ddp", lambda k: "module." + k),
        "saved under FSDP": changed("fsdp", lambda k: k.replace("self_attn.", "_fsdp_wrapped_module.self_attn.")),
        "the adapter's name left in the names": changed("named", lambda k: k.replace(".weight", ".default.weight")),
        "several adapters in one file": changed(
            "both", lambda k: k.replace(".weight", f".{'a' if 'layers.0' in k else 'b'}.weight")
        ),
        "a copy of the base's head beside it": changed("copy", add={head: copy}),
        "a head of its own beside it": changed("trained", add={head: copy + 1}),
        "a head with more tokens": changed("longer", add={head: longer}),
        "`lm_head` among its targets": adapter("head", target_modules=["q_proj", "lm_head"]),
        "a byte-order mark in its config": marked,
        "a config in UTF-16": wide,
        "`4.0` for 4": changed("point", r=2.0),
        '`"4"` for 4': changed("text", r="2"),
        "targets with PEFT's prefix": changed(
            "prefixed", target_modules=[f"{PREFIX}model.layers.{i}.self_attn.{m}_proj" for i in (0, 1) for m in "qv"]
        ),
        "some layers only (`layers_to_transform`)": adapter("some", target_modules=["q_proj"], layers_to_transform=[1]),
        "layers missing from its file": changed("lost", keep=lambda k: "layers.1" not in k),
        "empty tensors": changed("zero3", turn=lambda t: t[:0]),
        "no tensors": changed("none", keep=lambda k: False),
        "MLX's folder": changed("mlx", file="adapters.safetensors"),
        "MLX's or torchtune's names": changed(
            "tune", lambda k: k.replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b")
        ),
        "mistral-finetune's folder": changed("mistral", file="lora.safetensors"),
        "weights in pieces": changed("pieces", file="adapter_model-00001-of-00002.safetensors"),
        "a whole model": changed("whole", file="model.safetensors"),
        "a parent folder of adapters": parent,
        "DoRA": adapter("dora", target_modules=["q_proj"], use_dora=True),
        "for bare parameters, as PEFT makes for experts": changed("moe", target_parameters=["experts.down_proj"]),
        "for another model": changed("other", lambda k: k.replace("self_attn", "attention"), target_modules=None),
    }
    return [(kind, folder, base) for kind, folder in folders.items()] + [
        ("for a model with a head, on its bare backbone", plain, base.model)
    ]
