"""Where a composed answer goes wrong: token by token under the gold answer, and in what was written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from radargate.data.batches import encode_rows
from radargate.data.rows import Row
from radargate.training.options import Training

PARTS = ("first skill", "connector", "first token of the second skill", "rest", "end")
MISTAKES = (
    "right",
    "right, but goes on",
    "first result wrong, words fit it",
    "first result right, words wrong",
    "both wrong",
    "nothing after the first result",
    "no connector",
)


@torch.no_grad()
def part_scores(model: Any, tokenizer: Any, by_task: Mapping[str, Sequence[Row]], batch: int = 20) -> dict[str, Any]:
    """Task → part → share of tokens whose most likely token is the gold one, and nats a token, each after the gold tokens before it."""
    found: dict[str, Any] = {}
    seq2seq = bool(model.config.is_encoder_decoder)
    for task, rows in by_task.items():
        encoded = encode_rows(rows, tokenizer, Training(), encoder_decoder=seq2seq)
        examples, sums = encoded.rows[:], {part: [0.0, 0.0, 0] for part in PARTS}
        for start in range(0, len(examples), batch):
            some = examples[start : start + batch]
            tensors = {key: value.to(model.device) for key, value in encoded.collator(some).items()}
            labels = tensors.pop("labels")
            logits = model(**tensors, **({"labels": labels} if seq2seq else {})).logits.float()
            if not seq2seq:
                logits, labels = logits[:, :-1], labels[:, 1:]
            for row in range(len(some)):
                kept = labels[row] != -100
                gold, logs = labels[row][kept], logits[row][kept].log_softmax(-1)
                nll, right = -logs.gather(-1, gold[:, None])[:, 0], logs.argmax(-1) == gold
                for i, part in enumerate(parts_of([tokenizer.decode([t]) for t in gold.tolist()])):
                    sums[part][0] += float(right[i])
                    sums[part][1] += float(nll[i])
                    sums[part][2] += 1
        found[task] = {
            part: {"right": right / count, "nll": nll / count, "tokens": count}
            for part, (right, nll, count) in sums.items()
            if count
        }
    return found


def parts_of(tokens: Sequence[str]) -> list[str]:
    """The part that each token of an answer belongs to; the last one is its end."""
    names, behind = [], 0
    for token in tokens:
        if behind:
            names.append(PARTS[2] if behind == 1 else PARTS[3])
            behind += 1
        elif token.strip() == "=":
            names.append(PARTS[1])
            behind = 1
        else:
            names.append(PARTS[0])
    return [*names[:-1], PARTS[4]]


def mistake(target: str, answer: str, facts: Mapping[str, str]) -> str:
    """What kind of answer this is; ``facts`` are what the second skill says of each first result."""
    if answer.strip().lower() == target.lower():  # as exact match is judged
        return "right"
    lines = answer.strip().splitlines()
    answer = lines[0].strip() if lines else ""
    if answer.lower().startswith(target.lower()):
        return "right, but goes on"
    result, connector, words = (text.strip() for text in answer.partition("="))
    if not connector:
        return "no connector"
    if not words:
        return "nothing after the first result"
    if result == target.partition(" = ")[0]:
        return "first result right, words wrong"
    return "first result wrong, words fit it" if facts.get(result) == words else "both wrong"


def mistakes(targets: Sequence[str], answers: Sequence[str], facts: Mapping[str, str]) -> dict[str, int]:
    """How many answers are of each kind."""
    counts = Counter(mistake(target, answer, facts) for target, answer in zip(targets, answers, strict=True))
    return {kind: counts[kind] for kind in MISTAKES if counts[kind]}
