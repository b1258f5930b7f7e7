"""Adapters of an image classifier as one model, trained with Trainer: python examples/image_classifier.py

A tiny random ViT stands for yours: put `ViTForImageClassification.from_pretrained(…)` and your adapters in its place.
"""

import copy
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import radargate

torch.manual_seed(0)
shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
base = ViTForImageClassification(ViTConfig(**shape, image_size=16, patch_size=4, num_labels=3))
pictures = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % 3} for i in range(24)]


def train(model, folder, steps):
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        learning_rate=5e-3,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    return Trainer(model, arguments, train_dataset=pictures).train().training_loss


with tempfile.TemporaryDirectory() as work:
    folder = Path(work)
    for name in ("birds", "flowers"):  # in earnest, each on pictures of its own
        adapter = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        train(adapter, folder / "run", steps=5)
        adapter.save_pretrained(folder / name)
    # an adapter with modules_to_save=["classifier"] brings its own head: all must agree on one, or head="birds" says whose
    model = radargate.compose(base, {name: folder / name for name in ("birds", "flowers")}, gate="radar")
    print(f"loss {train(model, folder / 'run', steps=10):.3f}; only the gates were trained")
    model.save_pretrained(folder / "bundle")
    again = radargate.load(copy.deepcopy(base), folder / "bundle")
    picture = pictures[0]["pixel_values"][None]
    print("label", int(again(pixel_values=picture).logits.argmax()))
    print("without each expert the output moves by", radargate.trace(again, {"pixel_values": picture}).effect())
