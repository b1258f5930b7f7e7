"""A bundle's model card: what it is, how to load it, its adapters, licences as their own cards state them, and scores."""

from __future__ import annotations

import re
from pathlib import Path

from radargate.base_models.cache import PACKAGED_MODELS
from radargate.composition.bundle import Described
from radargate.io.places import recall
from radargate.io.records import write_atomic

CARD_FILE = "README.md"
SCORES = "## Scores"
NOT_STATED = "not stated in its folder"
_MOST = 1 << 16  # letters of another card that are read


def write_card(folder: Path, config: Described, given: Described) -> None:
    """Write the card of a bundle that was just saved.

    Args:
        folder: of the bundle.
        config: what the bundle says of itself, without folders of this machine.
        given: the same with them: licences are read there.
    """
    facts_of = given.adapter_facts().items()
    sources = {name: str(facts.get("source") or recall(facts.get("sha256")) or "") for name, facts in facts_of}
    adapters = "\n".join(
        f"| {name} | {facts.get('source', '')} | {licence_of(sources.get(name, ''))} | `{str(facts.get('sha256', ''))[:16]}` |"
        for name, facts in {**config.expert_facts, **config.adapter_facts()}.items()
    )
    base = config.base_model_name_or_path
    held = "its gates only; the adapters are found by hash" if config.gate_only else "its adapters, but not the base"
    text = f"""---
base_model: {base}
library_name: peft
tags:
- radargate
- lora
---

# {len(config.experts)} LoRA adapters of {base} as one model

Gate or rule `{config.gate}`, architecture `{config.architecture}`, top-k {config.top_k}, {len(config.sites)} adapted layers. The folder holds {held}.
Base and adapters are as they were; only the gates were trained.

```python
import radargate  # pip install radargate; tells PEFT what this folder is

model = radargate.load(None, "path/to/this/folder")  # or a base of yours in place of None
print(radargate.generate(model, "A question")[0])
```

On the command line `radargate generate` and `radargate serve` take this folder. Other tools know it when `radargate run` starts them.

Licence of the base: {licence_of(given.base_model_name_or_path or "")}. Gates learned from rows have no licence of their own here.

| adapter | source | licence | sha256 |
|---|---|---|---|
{adapters}
"""
    write_atomic(folder / CARD_FILE, text)


def add_scores(folder: Path, table: str, conditions: str) -> None:
    """Put measured scores at the card's end, in place of those that stood there; nothing where there is no card."""
    card = folder / CARD_FILE
    if card.exists():
        text = card.read_text(encoding="utf-8").partition(SCORES)[0].rstrip()
        write_atomic(card, f"{text}\n\n{SCORES}\n\n{table}\n\n{conditions}\n")


def licence_of(source: str) -> str:
    """The licence that a base or an adapter states: of a packaged base its own, else ``license:`` of the card in its folder."""
    if source in PACKAGED_MODELS:
        return PACKAGED_MODELS[source].licence
    card = Path(source) / "README.md"
    if not source or not card.is_file():
        return NOT_STATED
    with card.open(encoding="utf-8", errors="replace") as file:
        head = re.match(r"---\n(.*?)\n---", file.read(_MOST), re.S)
    found = re.search(r"^license: *([\w.+ -]{1,60})$", head[1] if head else "", re.M)
    return found[1].strip() if found else NOT_STATED
