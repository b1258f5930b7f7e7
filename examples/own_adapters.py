"""Your own adapters in ten lines: python examples/own_adapters.py BASE ADAPTER ADAPTER …"""

import sys

import radargate
from radargate.base_models.loading import load_tokenizer
from radargate.evaluation.scoring import generate

base, *folders = sys.argv[1:]
model = radargate.compose(base, folders, gate="radar", top_k=2)  # every adapter is checked; only gates are trainable
print(f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} gate numbers to train")
tokenizer = load_tokenizer(base)
print(generate(model, tokenizer, ["What is 2 + 2?"], max_new_tokens=16)[0])
first = model.peft_config["default"].experts[0]
with radargate.using(model, {first: 0.0}):  # for this block, in this thread only
    print(f"without {first}:", generate(model, tokenizer, ["What is 2 + 2?"], max_new_tokens=16)[0])
