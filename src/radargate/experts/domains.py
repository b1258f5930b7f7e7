"""Domain vectors of experts, for gates that match tokens with descriptions of experts (Nexus)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from radargate.errors import DataError

TEXTS = 64


@torch.no_grad()
def domain_vectors(
    model: Any, tokenizer: Any, texts: Mapping[str, Sequence[str]], *, batch_size: int = 16, max_length: int = 256
) -> dict[str, Tensor]:
    """Mean last hidden state of the base model over each expert's texts.

    Args:
        model: the base model, or a composed one (its adapters are switched off meanwhile).
        tokenizer: its tokenizer.
        texts: expert → texts of its domain; the first 64 are read.
        batch_size: texts a batch.
        max_length: tokens of a text at most.

    Returns:
        expert → vector [width], float32: the mean over texts of the mean over their tokens.

    Raises:
        DataError: an expert has no text.

    Source: Nexus, with the base model in place of an external embedding model.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = inner.get_encoder() if inner.config.is_encoder_decoder else inner.base_model
    device, found = next(inner.parameters()).device, {}
    with model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext():
        for name, own in texts.items():
            own = list(own)[:TEXTS]
            if not own:
                raise DataError(f"expert {name!r} has no text, so it has no domain vector.")
            means = []
            for start in range(0, len(own), batch_size):
                batch = tokenizer(
                    own[start : start + batch_size],
                    return_tensors="pt",
                    padding=True,
                    truncation=True,
                    max_length=max_length,
                ).to(device)
                ids, mask = batch["input_ids"], batch["attention_mask"]
                hidden = body(input_ids=ids, attention_mask=mask).last_hidden_state.float()
                means.append((hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1))
            found[name] = torch.cat(means).mean(0).cpu()
    return found
