# %% [markdown]
# # A first composition with your own adapters
#
# Several LoRA adapters of one base become one model. Here with the five that come with the package; with yours:
# `python examples/first_composition.py BASE ADAPTER ADAPTER …`.

# %%
import sys
from pathlib import Path

import radargate

base, adapters = "smollm2-135m", radargate.shipped_experts()
if sys.argv[2:]:
    base, adapters = sys.argv[1], {Path(folder).name: folder for folder in sys.argv[2:]}
print(base, list(adapters))

# %% [markdown]
# `radargate doctor BASE ADAPTER…` says whether each adapter is sound, fits and changes anything. In Python, composing checks the same.
#
# ## Nothing trained: one adapter for each prompt
#
# `select` needs to know what each adapter is for: a prompt or a few of its kind.

# %%
prompts = {
    "language": ["Write as an ordinal number: forty-two", "Write in words, with the right plural: 10 watch"],
    "mathematics": ["What is 18 + 19?", "What comes next: 22, 37, 52, 67?"],
    "reasoning": ["Today is Friday. Which day is it in 18 days?", "Ben is taller than Ines. Who is the shortest?"],
    "translation": ["Translate into German: March 3", "Translate into Italian: five hundred"],
    "science": ["How many metres are 12 kilometres?", "Which element has the heavier atoms: tin or gold?"],
}
examples = {name: prompts.get(name, [f"A prompt for the adapter {name}."]) for name in adapters}
model = radargate.compose(base, adapters, gate="select", examples=examples)
questions = ["How many grams are 59 kilograms?", "Translate into German: May 12", "What is 47 + 9?"]
for question, answer in zip(questions, radargate.generate(model, questions, max_new_tokens=12), strict=True):
    print(f"{question}  →  {answer}")

# %% [markdown]
# ## Switch an adapter off
#
# `using` multiplies an adapter's weight for the calls inside the block, in this thread only.

# %%
last = list(adapters)[-1]
with radargate.using(model, {last: 0.0}):
    print(f"without {last}:", radargate.generate(model, questions[0], max_new_tokens=12)[0])

# %% [markdown]
# ## Save it and load it
#
# A bundle is an ordinary PEFT adapter folder with the adapters inside.

# %%
model.save_pretrained("my_bundle")
print(sorted(file.name for file in Path("my_bundle").iterdir()))
again = radargate.load(base, "my_bundle")
print(radargate.generate(again, questions[0], max_new_tokens=12)[0])

# %% [markdown]
# ## With rows that have answers
#
# `radargate.choose(base, adapters, "rows.jsonl", out="bundle")` tries base, adapters, `select`, rules and gates and saves the best, with a page that
# says why. [Choosing](../choosing.md) is about what it does; [Rows](../rows.md) about the files it reads.
