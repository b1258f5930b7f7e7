# %% [markdown]
# # Trainer and TRL
#
# A composition is a PeftModel whose gates alone are trainable, so any training loop will do. With adapters of yours:
# `python examples/trainer_and_trl.py BASE ADAPTER ADAPTER …`.

# %%
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import radargate
from radargate.base_models.loading import load_tokenizer

base, adapters = "smollm2-135m", radargate.shipped_experts()
if sys.argv[2:]:
    base, adapters = sys.argv[1], {Path(folder).name: folder for folder in sys.argv[2:]}
tokenizer = load_tokenizer(base)

# %% [markdown]
# ## transformers.Trainer
#
# Two lines are ours. `DenseStart` lets every adapter act for the first half of the steps, then keeps the `top_k`.
# `parameter_groups` gives the rotation a learning rate of its own.

# %%
model = radargate.compose(base, adapters, gate="radar", top_k=2)
print(f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} trainable parameters, all of them in gates")
texts = [f"How many metres are {n} kilometres? {n}000" for n in range(1, 17)]
tokens = [tokenizer(text)["input_ids"] for text in texts]
rows = [{"input_ids": t, "labels": t} for t in tokens]


def pad(batch):
    longest = max(len(row["input_ids"]) for row in batch)
    filled = {"input_ids": tokenizer.pad_token_id or 0, "labels": -100}
    found = {k: torch.tensor([r[k] + [v] * (longest - len(r[k])) for r in batch]) for k, v in filled.items()}
    return {**found, "attention_mask": (found["labels"] != -100).long()}


arguments = TrainingArguments(
    "trainer_run",
    max_steps=8,
    per_device_train_batch_size=4,
    report_to=[],
    save_strategy="no",
    disable_tqdm=True,
    logging_strategy="no",
    use_cpu=True,
)
groups = radargate.parameter_groups(model, lr=5e-3, rotation_lr=5e-3)
trainer = Trainer(
    model,
    arguments,
    train_dataset=rows,
    data_collator=pad,
    callbacks=[radargate.DenseStart(0.5)],
    optimizers=(torch.optim.AdamW(groups), None),
)
print(f"loss {trainer.train().training_loss:.2f}, mean of 8 steps")
model.save_pretrained("trained_bundle")

# %% [markdown]
# ## TRL's SFTTrainer
#
# The same model and callback; TRL tokenizes prompt and completion and puts the loss on the completion.

# %%
model = radargate.compose(base, adapters, gate="radar", top_k=2)
pairs = [{"prompt": f"What is {n} + 1?", "completion": f" {n + 1}"} for n in range(16)]
arguments = SFTConfig(
    "sft_run",
    max_steps=4,
    per_device_train_batch_size=4,
    report_to=[],
    save_strategy="no",
    disable_tqdm=True,
    logging_strategy="no",
    bf16=False,
    gradient_checkpointing=False,
    use_cpu=True,
)
trainer = SFTTrainer(
    model,
    arguments,
    train_dataset=Dataset.from_list(pairs),
    processing_class=tokenizer,
    callbacks=[radargate.DenseStart(0.5)],
    optimizers=(torch.optim.AdamW(radargate.parameter_groups(model, lr=5e-3, rotation_lr=5e-3)), None),
)
print(f"loss {trainer.train().training_loss:.2f}, mean of 4 steps")
model.save_pretrained("sft_bundle")

# %% [markdown]
# ## Load what was trained

# %%
trained = radargate.load(base, "trained_bundle")
print(radargate.generate(trained, "How many metres are 20 kilometres?", max_new_tokens=8)[0])

# %% [markdown]
# Without a loop of your own: `radargate.train(base, adapters, "rows.jsonl", "bundle", gate="radar")`, or `radargate train`, which
# resumes, logs and writes the card. With `router="text"` or `"prompt"`, call `radargate.describe_texts(model, token_ids)` before the first step.
