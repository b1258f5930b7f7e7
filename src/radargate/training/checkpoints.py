"""Training checkpoints: trained tensors and optimizer state in safetensors, the rest in JSON, whole or not at all.

No pickle: a checkpoint folder may come from somebody else. A checkpoint is written under a temporary name,
flushed, and renamed; ``complete.json`` holds the hash of every file, so that a cut-off copy is passed over.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from radargate.errors import RadarGateError
from radargate.io.disk import flush
from radargate.io.records import file_hash, write_atomic

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")
KEEP = 2
NEEDED = {"trained.safetensors", "optimizer.safetensors", "optimizer.json", "trainer_state.json"}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name → parameter of everything that is being trained."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save(trainer: Any) -> Path:
    """Write a checkpoint of a Trainer's trained tensors, optimizer, schedule, random state and progress."""
    step, out = trainer.state.global_step, Path(trainer.args.output_dir)
    final = out / f"checkpoint-{step}"
    work = out / f".checkpoint-{step}.tmp"
    shutil.rmtree(work, ignore_errors=True)
    try:
        _write(trainer, work)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(work, final)
        flush(out)
    finally:  # a full disk gets the room of the unfinished one back
        shutil.rmtree(work, ignore_errors=True)
    for _, old in _checkpoints(out)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _write(trainer: Any, work: Path) -> None:
    """Every file of a checkpoint, and last the one that says that the others are whole."""
    work.mkdir(parents=True)
    save_file(
        {n: p.detach().cpu().contiguous() for n, p in trainable(trainer.model).items()},
        work / "trained.safetensors",
    )
    state = trainer.optimizer.state_dict()
    tensors, scalars = {}, {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value.detach().cpu().contiguous()
            else:
                scalars[f"{index}.{key}"] = value
    tensors["random.torch"] = torch.get_rng_state()
    numpy_state = np.random.get_state(legacy=False)
    tensors["random.numpy"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    save_file(tensors, work / "optimizer.safetensors")
    facts = {
        "scalars": scalars,
        "param_groups": state["param_groups"],
        "scheduler": trainer.lr_scheduler.state_dict(),
        "python_random": random.getstate(),
        "numpy_random": {
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
    }
    (work / "optimizer.json").write_text(json.dumps(facts))
    trainer.state.save_to_json(str(work / "trainer_state.json"))
    hashes = {file.name: file_hash(file) for file in sorted(work.iterdir())}
    write_atomic(work / "complete.json", json.dumps({"step": trainer.state.global_step, "sha256": hashes}))
    flush(work)


def newest(out: str | Path) -> Path | None:
    """The newest whole checkpoint in a folder; unfinished or damaged ones are passed over, and named in the log."""
    found = _checkpoints(Path(out))
    for step, folder in reversed(found):
        fault = damage(folder)
        if fault is None:
            return folder
        logger.info(f"{folder} is damaged ({fault}): its {step} steps are passed over.")
    if found:
        logger.info(f"no checkpoint in {out} is whole: training begins again.")
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None where every file is as it was written."""
    try:
        complete = json.loads((folder / "complete.json").read_text(encoding="utf-8"))
        if missing := sorted(NEEDED - set(complete["sha256"])):
            return f"complete.json does not list {missing[0]}"
        for name, digest in complete["sha256"].items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if file_hash(folder / name) != digest:
                return f"{name} was cut off or changed"
    except FileNotFoundError:
        return "complete.json is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "complete.json was cut off or changed"
    return None


def load_parameters(model: nn.Module, folder: Path) -> None:
    """Copy trained tensors back; their names and shapes must be exactly the model's trainable ones.

    Raises:
        RadarGateError: they are not, so the checkpoint belongs to another run.
    """
    stored, wanted = load_file(folder / "trained.safetensors"), trainable(model)
    if stored.keys() != wanted.keys() or any(stored[n].shape != p.shape for n, p in wanted.items()):
        differing = sorted(stored.keys() ^ wanted.keys()) or ["shapes"]
        raise RadarGateError(
            f"{folder}: trained tensors do not fit this model (first difference: {differing[0]}). "
            "Resume with the options the run was started with, or choose another `out`."
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(stored[name])


def load_optimizer(trainer: Any, folder: Path) -> None:
    """Restore optimizer and learning-rate schedule."""
    tensors = load_file(folder / "optimizer.safetensors")
    facts = json.loads((folder / "optimizer.json").read_text())
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **facts["scalars"]}.items():
        index, _, name = key.partition(".")
        if index != "random":
            state.setdefault(int(index), {})[name] = value
    for group in facts["param_groups"]:
        if "betas" in group:
            group["betas"] = tuple(group["betas"])
    trainer.optimizer.load_state_dict({"state": state, "param_groups": facts["param_groups"]})
    trainer.lr_scheduler.load_state_dict(facts["scheduler"])


def load_random_state(folder: Path) -> None:
    """Restore the random generators of Python, NumPy and torch."""
    tensors = load_file(folder / "optimizer.safetensors")
    facts = json.loads((folder / "optimizer.json").read_text())
    version, words, gauss = facts["python_random"]
    random.setstate((version, tuple(words), gauss))
    stored = facts["numpy_random"]
    key = tensors["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, stored["pos"], stored["has_gauss"], stored["gauss"]))
    torch.set_rng_state(tensors["random.torch"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])


def _checkpoints(out: Path) -> list[tuple[int, Path]]:
    if not out.is_dir():
        return []
    found = [(int(m[1]), p) for p in out.iterdir() if (m := _NAME.fullmatch(p.name)) and p.is_dir()]
    return sorted(found)
