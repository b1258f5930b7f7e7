"""Train the gates with TRL's SFTTrainer: python examples/trl_sft.py BASE OUT ADAPTER ADAPTER …"""

import sys

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import radargate
from radargate.base_models.loading import load_tokenizer

base, out, *folders = sys.argv[1:]
model = radargate.compose(base, folders, gate="radar", top_k=2)
rows = Dataset.from_list([{"prompt": f"What is {i} + 1?", "completion": f" {i + 1}"} for i in range(16)])
args = SFTConfig(
    out,
    max_steps=4,
    per_device_train_batch_size=4,
    report_to=[],
    save_strategy="no",
    bf16=False,
    gradient_checkpointing=False,
)
trainer = SFTTrainer(
    model,
    args,
    train_dataset=rows,
    processing_class=load_tokenizer(base),
    callbacks=[radargate.DenseStart(0.5)],  # all experts for the first half, then top-k
    optimizers=(torch.optim.AdamW(radargate.parameter_groups(model, lr=5e-3, rotation_lr=5e-3)), None),
)
trainer.train()
model.save_pretrained(out)
print(f"saved to {out}; load it with radargate.load({base!r}, {out!r})")
