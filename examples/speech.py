"""Adapters of a speech recogniser as one model, trained with Trainer: python examples/speech.py

A tiny random Whisper stands for yours: put `WhisperForConditionalGeneration.from_pretrained(…)` and your adapters in its place.
"""

import copy
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments, WhisperConfig, WhisperForConditionalGeneration

import radargate

torch.manual_seed(0)
layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
sizes = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 8, "max_source_positions": 20}
special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 2}
base = WhisperForConditionalGeneration(
    WhisperConfig(
        vocab_size=60,
        max_target_positions=16,
        suppress_tokens=[],
        begin_suppress_tokens=[],
        **layers,
        **sizes,
        **special,
    )
)
sounds = [{"input_features": torch.randn(8, 40), "labels": torch.randint(3, 60, (5,))} for _ in range(16)]


def train(model, folder, steps):
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        learning_rate=5e-3,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    return Trainer(model, arguments, train_dataset=sounds).train().training_loss


with tempfile.TemporaryDirectory() as work:
    folder = Path(work)
    for name in ("english", "welsh"):  # in earnest, each on recordings of its own
        adapter = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        train(adapter, folder / "run", steps=5)
        adapter.save_pretrained(folder / name)
    model = radargate.compose(base, {name: folder / name for name in ("english", "welsh")}, gate="radar")
    print(f"loss {train(model, folder / 'run', steps=10):.3f}; only the gates were trained")
    model.save_pretrained(folder / "bundle")
    again = radargate.load(copy.deepcopy(base), folder / "bundle").eval()
    heard = sounds[0]["input_features"][None]
    with radargate.using(again, {"welsh": 0.0}):  # English only, for these calls
        print("tokens", again.generate(input_features=heard, max_new_tokens=6)[0].tolist())
