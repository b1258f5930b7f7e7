"""What a base model is for, told by its class: PEFT's task type, and whether it has an encoder and a decoder."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto import modeling_auto

from radargate.errors import BaseModelError

# PEFT's task types, and the classes of transformers that each stands for; the first that fits counts
_CLASSES = {
    "SEQ_CLS": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",),
    "TOKEN_CLS": ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",),
    "QUESTION_ANS": ("MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",),
    "SEQ_2_SEQ_LM": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",),
    "CAUSAL_LM": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"),
    "FEATURE_EXTRACTION": ("MODEL_MAPPING_NAMES", "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES"),
}
# pictures, films and sound
_OTHER = {"pixel_values", "pixel_values_videos", "input_features", "input_values", "audio_values"}
# tasks whose head an adapter may bring to a checkpoint without one
_HEADS: dict[str | None, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
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


def model_class(config: Any, task: str | None = None, site: str | None = None) -> Any:
    """The class that a checkpoint is to be loaded with: the one it was saved from.

    Args:
        config: of the checkpoint.
        task: a task type whose head is put onto it, where adapters bring that head; or ``FEATURE_EXTRACTION`` for a backbone as
            it is.
        site: a layer that adapters name, by which a backbone is told from the language model around it.

    Returns:
        A class of transformers; where the checkpoint names none that is known, the Auto class for language models. A backbone
        that has all weights of a language model is one (BART's are saved so).
    """
    named = getattr(transformers, (getattr(config, "architectures", None) or ["-"])[0], None)
    own = _tasks().get(named.__name__) if named else None
    if task in _HEADS and own != task and type(config) in _HEADS[task]._model_mapping:
        return _HEADS[task]._model_mapping[type(config)]
    auto = AutoModelForSeq2SeqLM if getattr(config, "is_encoder_decoder", False) else AutoModelForCausalLM
    if named is None:
        return auto
    if own == task or own != "FEATURE_EXTRACTION" or type(config) not in auto._model_mapping:
        return named
    with torch.device("meta"):
        whole = auto.from_config(config)
    body = f"{whole.base_model_prefix}."
    if site is not None and not site.startswith(body):
        return named
    return type(whole) if all(name.startswith(body) for name, _ in whole.named_parameters()) else named


def answers_with(model: Any) -> str:
    """``"text"`` or ``"label"``: how a model answers a row.

    Raises:
        BaseModelError: it has no head for either.
    """
    if task_type(model) == "SEQ_CLS":
        return "label"
    if can_generate(model) and getattr(model, "main_input_name", "") == "input_ids":
        return "text"
    raise BaseModelError(
        f"{type(model).__name__} answers neither with text nor with a label, so that it cannot be trained, scored or asked here. "
        "Compose it in Python and use a Trainer of your own, or give a checkpoint with a language model's or a classifier's head."
    )


def other_inputs(model: Any) -> list[str]:
    """What a model can read beside text, by the names of its forward's arguments."""
    taken = set(inspect.signature(model.forward).parameters)
    own = getattr(model, "main_input_name", "input_ids")
    return sorted((taken & _OTHER) | ({own} - {"input_ids"}))
