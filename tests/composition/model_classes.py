"""One tiny random model of every class that a composition serves, with inputs that make it compute a loss where it can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers as t

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "max_position_embeddings": 64}
PICTURE = {**SMALL, "image_size": 8, "patch_size": 4}
IDS = torch.arange(2, 14).reshape(2, 6)
PIXELS = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
SOUND = torch.linspace(-1, 1, 800).sin().reshape(2, 400)
QKV = ["query", "value"]


@dataclass(frozen=True)
class Case:
    """A class: how its model is built, what it reads, and what three adapters target.

    Attributes:
        build: makes the model.
        inputs: two rows.
        targets: of the adapters.
        lora_task: task type of the adapters.
        task: PEFT's task type of the composition.
    """

    build: Any
    inputs: dict[str, torch.Tensor]
    targets: Any
    lora_task: str | None = None
    task: str | None = None


def bert(kind: Any, **more: Any) -> Any:
    return lambda: kind(t.BertConfig(**SMALL, **{**TEXT, **more}))


def siglip() -> Any:
    vision = {**PICTURE, "vision_use_head": True}
    return t.SiglipModel(t.SiglipConfig(text_config={**SMALL, **TEXT, "projection_size": 16}, vision_config=vision))


def clip() -> Any:
    return t.CLIPModel(t.CLIPConfig(text_config={**SMALL, **TEXT}, vision_config=PICTURE, projection_dim=8))


def whisper() -> Any:
    stacks = {
        f"{s}_{k}": v
        for s in ("encoder", "decoder")
        for k, v in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))
    }
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 2}
    sizes = {"d_model": 16, "vocab_size": 64, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16}
    made = t.WhisperForConditionalGeneration(t.WhisperConfig(**stacks, **special, **sizes))
    made.generation_config.suppress_tokens = made.generation_config.begin_suppress_tokens = None
    return made


def wav2vec2(kind: Any) -> Any:
    sizes = {"conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (5, 4), "num_feat_extract_layers": 2}
    convolutions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "group"}
    still = {"mask_time_prob": 0.0, "layerdrop": 0.0, "classifier_proj_size": 8, "pad_token_id": 0}
    return lambda: kind(t.Wav2Vec2Config(**SMALL, **sizes, **convolutions, **still, vocab_size=16, num_labels=2))


def llava() -> Any:
    text = t.LlamaConfig(**SMALL, **TEXT)
    vision = t.CLIPVisionConfig(**PICTURE)
    return t.LlavaForConditionalGeneration(t.LlavaConfig(text_config=text, vision_config=vision, image_token_id=63))


def gemma3() -> Any:
    text = {**SMALL, **TEXT, "head_dim": 8, "num_key_value_heads": 1, "sliding_window": 8}
    vision = {**PICTURE, "vision_use_head": False}
    config = t.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=63)
    return t.Gemma3ForConditionalGeneration(config)


def qwen2_vl() -> Any:
    rope = {"rope_type": "default", "type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    text = {**SMALL, **TEXT, "num_key_value_heads": 1, "rope_scaling": rope}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    special = {"image_token_id": 63, "video_token_id": 62, "vision_start_token_id": 61, "vision_end_token_id": 60}
    return t.Qwen2VLForConditionalGeneration(t.Qwen2VLConfig(text_config=text, vision_config=vision, **special))


def llama(kind: Any, **more: Any) -> Any:
    return lambda: kind(t.LlamaConfig(**SMALL, **TEXT, **more))


def t5() -> Any:
    return t.T5ForConditionalGeneration(
        t.T5Config(d_model=16, d_ff=24, d_kv=8, num_heads=2, num_layers=1, vocab_size=64, decoder_start_token_id=0)
    )


def bart_classifier() -> Any:
    stacks = {
        f"{s}_{k}": v
        for s in ("encoder", "decoder")
        for k, v in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))
    }
    return t.BartForSequenceClassification(t.BartConfig(**stacks, d_model=16, vocab_size=64, num_labels=3))


def seen(count: int, rows: int = 2) -> torch.Tensor:
    """Token ids whose first ``count`` stand for a picture."""
    return torch.cat([torch.full((rows, count), 63), IDS], 1)


def qwen_inputs() -> dict[str, torch.Tensor]:
    ids = torch.cat([torch.full((2, 1), 61), torch.full((2, 1), 63), torch.full((2, 1), 60), IDS], 1)
    grid = torch.tensor([[1, 2, 2], [1, 2, 2]])
    pixels = torch.linspace(-1, 1, 8 * 96).reshape(8, 96)
    return {
        "input_ids": ids,
        "pixel_values": pixels,
        "image_grid_thw": grid,
        "mm_token_type_ids": (ids == 63).long(),
        "labels": ids,
    }


LABELS, BINARY = torch.tensor([0, 1]), {"labels": torch.tensor([0, 1])}
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
READ = {"input_ids": IDS, "attention_mask": MASK}
CASES = {
    "llama": Case(
        llama(t.LlamaForCausalLM), {**READ, "labels": IDS}, ["q_proj", "down_proj"], "CAUSAL_LM", "CAUSAL_LM"
    ),
    "t5": Case(t5, {**READ, "labels": IDS}, ["q", "wo"], "SEQ_2_SEQ_LM", "SEQ_2_SEQ_LM"),
    "bert classifier": Case(bert(t.BertForSequenceClassification), {**READ, **BINARY}, QKV, "SEQ_CLS", "SEQ_CLS"),
    "bert classifier, all linear": Case(
        bert(t.BertForSequenceClassification), {**READ, **BINARY}, "all-linear", None, "SEQ_CLS"
    ),
    "llama reward": Case(
        llama(t.LlamaForSequenceClassification, num_labels=1),
        {**READ, "labels": torch.tensor([0.5, -1.0])},
        ["q_proj", "v_proj"],
        "SEQ_CLS",
        "SEQ_CLS",
    ),
    "modernbert classifier": Case(
        lambda: t.ModernBertForSequenceClassification(
            t.ModernBertConfig(**SMALL, **{**TEXT, "bos_token_id": 2}, cls_token_id=2, sep_token_id=1)
        ),
        {**READ, **BINARY},
        ["Wqkv", "Wo"],
        "SEQ_CLS",
        "SEQ_CLS",
    ),
    "deberta classifier": Case(
        lambda: t.DebertaV2ForSequenceClassification(t.DebertaV2Config(**SMALL, **TEXT)),
        {**READ, **BINARY},
        ["query_proj", "value_proj"],
        "SEQ_CLS",
        "SEQ_CLS",
    ),
    "bart classifier": Case(
        bart_classifier,
        {"input_ids": torch.cat([IDS[:, :5] + 3, torch.full((2, 1), 2)], 1), **BINARY},
        ["q_proj", "fc1"],
        "SEQ_CLS",
        "SEQ_CLS",
    ),
    "bert tagger": Case(bert(t.BertForTokenClassification), {**READ, "labels": IDS % 2}, QKV, "TOKEN_CLS", "TOKEN_CLS"),
    "bert tagger, plain": Case(bert(t.BertForTokenClassification), {**READ, "labels": IDS % 2}, QKV, None, "TOKEN_CLS"),
    "bert answers": Case(
        bert(t.BertForQuestionAnswering),
        {**READ, "start_positions": LABELS, "end_positions": LABELS + 1},
        QKV,
        "QUESTION_ANS",
        "QUESTION_ANS",
    ),
    "bert masked": Case(bert(t.BertForMaskedLM), {**READ, "labels": IDS}, "all-linear"),
    "roberta masked": Case(
        lambda: t.RobertaForMaskedLM(t.RobertaConfig(**SMALL, **TEXT)), {**READ, "labels": IDS}, QKV
    ),
    "bert features": Case(bert(t.BertModel), READ, QKV, "FEATURE_EXTRACTION", "FEATURE_EXTRACTION"),
    "llama features": Case(llama(t.LlamaModel), READ, ["q_proj"], "FEATURE_EXTRACTION", "FEATURE_EXTRACTION"),
    "vit classifier": Case(
        lambda: t.ViTForImageClassification(t.ViTConfig(**PICTURE, num_labels=3)),
        {"pixel_values": PIXELS, **BINARY},
        "all-linear",
    ),
    "vit features": Case(lambda: t.ViTModel(t.ViTConfig(**PICTURE)), {"pixel_values": PIXELS}, ["q_proj", "v_proj"]),
    "vit mae": Case(
        lambda: t.ViTMAEForPreTraining(
            t.ViTMAEConfig(
                **PICTURE,
                decoder_num_attention_heads=2,
                decoder_hidden_size=16,
                decoder_num_hidden_layers=1,
                decoder_intermediate_size=24,
            )
        ),
        {"pixel_values": PIXELS, "noise": torch.linspace(0, 1, 8).reshape(2, 4)},
        "all-linear",
    ),
    "clip": Case(clip, {"input_ids": IDS, "pixel_values": PIXELS, "return_loss": True}, ["q_proj", "v_proj"]),
    "siglip": Case(siglip, {"input_ids": IDS, "pixel_values": PIXELS, "return_loss": True}, "all-linear"),
    "whisper": Case(
        whisper, {"input_features": torch.linspace(-1, 1, 320).reshape(2, 8, 20), "labels": IDS}, ["q_proj", "v_proj"]
    ),
    "wav2vec2 ctc": Case(
        wav2vec2(t.Wav2Vec2ForCTC), {"input_values": SOUND, "labels": IDS[:, :2]}, ["q_proj", "v_proj"]
    ),
    "wav2vec2 classifier": Case(
        wav2vec2(t.Wav2Vec2ForSequenceClassification), {"input_values": SOUND, **BINARY}, ["q_proj", "v_proj"]
    ),
    "llava": Case(
        llava,
        {"input_ids": seen(4), "pixel_values": PIXELS, "labels": seen(4)},
        ["q_proj", "v_proj"],
        "CAUSAL_LM",
        "CAUSAL_LM",
    ),
    "qwen2-vl": Case(qwen2_vl, qwen_inputs(), ["q_proj", "v_proj"], "CAUSAL_LM", "CAUSAL_LM"),
    "gemma3": Case(
        gemma3,
        {"input_ids": seen(4), "token_type_ids": (seen(4) == 63).long(), "pixel_values": PIXELS, "labels": seen(4)},
        ["q_proj", "v_proj"],
        "CAUSAL_LM",
        "CAUSAL_LM",
    ),
}
