"""What a base model is for, told by its class: PEFT's task type, and whether it has an encoder and a decoder."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto import modeling_auto

# PEFT's task types, and the classes of transformers that each stands for; the first that fits counts
_CLASSES = {
    "SEQ_CLS": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",),
    "TOKEN_CLS": ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",),
    "QUESTION_ANS": ("MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",),
    "SEQ_2_SEQ_LM": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",),
    "CAUSAL_LM": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"),
    "FEATURE_EXTRACTION": ("MODEL_MAPPING_NAMES", "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES"),
}
# what PEFT's class for a task hands on by name, wanted or not
_HANDED = {"input_ids", "attention_mask", "inputs_embeds"}


def has_two_stacks(model: Any) -> bool:
    """Whether a model has an encoder and a decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def task_type(model: nn.Module) -> str | None:
    """PEFT's task type for a base model, from its class.

    None, which PEFT calls no task, for masked LMs, vision, speech and everything else whose forward takes other inputs
    than PEFT's classes for tasks hand on: `PeftModel` itself then hands on whatever it is given.
    """
    task = next((_tasks()[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in _tasks()), None)
    if task is None and can_generate(model):  # a user's own class
        task = "SEQ_2_SEQ_LM" if has_two_stacks(model) else "CAUSAL_LM"
    handed = _HANDED | ({"start_positions"} if task == "QUESTION_ANS" else set())
    return task if handed <= set(inspect.signature(model.forward).parameters) else None


def can_generate(model: Any) -> bool:
    """Whether a model writes text token by token."""
    asked = getattr(model, "can_generate", None)
    return bool(asked and asked() and hasattr(model, "prepare_inputs_for_generation"))


def shifts_labels(model: Any) -> bool:
    """Whether a model's own loss predicts the label after each token, as Trainer finds out too."""
    loss = LOSS_MAPPING.get(str(getattr(model, "loss_type", None)))
    return loss is ForCausalLMLoss and not has_two_stacks(model)


@functools.cache
def _tasks() -> Mapping[str, str]:
    """Class → task type."""
    found: dict[str, str] = {}
    for task, tables in _CLASSES.items():
        for table in tables:
            for names in getattr(modeling_auto, table).values():
                for name in (names,) if isinstance(names, str) else names:
                    found.setdefault(name, task)
    return found
