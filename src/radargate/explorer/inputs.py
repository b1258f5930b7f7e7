"""What a trace reads where a model predicts no next token: the inputs of any forward, and how far its output moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radargate.base_models.kinds import answers_with
from radargate.base_models.loading import load_tokenizer
from radargate.base_models.offload import device_of
from radargate.errors import BaseModelError, OptionError
from radargate.explorer.tokens import token_texts


@dataclass
class Inputs:
    """One call's inputs, by the names of the forward's arguments."""

    given: dict[str, Any]
    tokenizer: Any = None

    def output(self, model: Any) -> Tensor:
        """The first tensor that a model gives, its loss aside: [...]."""
        device = device_of(model)
        given = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in self.given.items()}
        found = model(**given)
        values = (
            found.items() if isinstance(found, Mapping) else enumerate(found if isinstance(found, tuple) else [found])
        )
        told = next((v for name, v in values if isinstance(v, Tensor) and name != "loss"), None)
        if told is None:
            raise OptionError(f"{type(model).__name__} gave {type(found).__name__}, which holds no tensor to look at.")
        return told.float()

    @property
    def ids(self) -> list[int]:
        """Token ids of the first row, where it is text."""
        ids = self.given.get("input_ids")
        return [] if ids is None else ids[0].tolist()

    def shown(self) -> list[str]:
        """The text of every token."""
        return [str(i) for i in self.ids] if self.tokenizer is None else token_texts(self.ids, self.tokenizer)


def inputs_of(model: Any, given: Any, tokenizer: Any, base: str) -> Inputs | None:
    """The inputs of a trace: a mapping as it is, or a text for a model that does not write; None where one writes.

    Raises:
        OptionError: a text for a model that reads none.
    """
    if isinstance(given, Mapping):
        return Inputs(dict(given), tokenizer)
    inner = model.get_base_model()
    try:
        if answers_with(inner) == "text":
            return None
    except BaseModelError as error:
        if getattr(inner, "main_input_name", "input_ids") != "input_ids":
            raise OptionError(
                f"{type(inner).__name__} reads {inner.main_input_name}; give radargate.trace its inputs by name, as a dict."
            ) from error
    if isinstance(given, str):
        tokenizer = tokenizer or load_tokenizer(base)
        given = tokenizer.encode(given)
    return Inputs({"input_ids": torch.as_tensor(given).reshape(1, -1)}, tokenizer)


def moved(output: Tensor, other: Tensor) -> list[float]:
    """How far an output is from another, as a share of its length."""
    return [float((other - output).norm() / output.norm().clamp_min(1e-12))]
