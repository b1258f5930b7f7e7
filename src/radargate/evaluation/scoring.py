"""Scoring rows with a model: the prompt is read once for all its choices, batches hold similar lengths."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radargate.base_models.kinds import answers_with
from radargate.base_models.limits import Limits
from radargate.base_models.loading import straight_head
from radargate.base_models.offload import device_of
from radargate.composition.model import RadarModel
from radargate.data.batches import pad, positions
from radargate.data.prompts import EncodedPair, encode_row, stop_tokens
from radargate.data.rows import Row
from radargate.errors import BaseModelError, shown
from radargate.evaluation.answers import check_metrics, judge, metric_of
from radargate.evaluation.metrics import RowScore
from radargate.gates.router.running_text import cache_in, cache_name
from radargate.io.progress import Progress

MAX_BATCH_TOKENS = 4096
TEMPLATE, LETTERS = 25, 3.8  # tokens around a prompt, letters a token
MADE = 5.0  # tokens of reading that one written token of a batch of 16 costs, measured with smollm2-135m


@dataclass(frozen=True)
class _Candidate:
    """One continuation of one row's context."""

    row: int
    pair: EncodedPair
    loglikelihoods: list[float]


class Scorer:
    """Scores rows with one model.

    Args:
        model: a causal or encoder–decoder model, composed or not.
        tokenizer: its tokenizer.
        batch_size: rows a batch at most.
        max_new_tokens: of free answers.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 16, max_new_tokens: int = 32) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        if isinstance(getattr(model, "base_model", None), RadarModel):
            model.base_model.check_decodes()
        self.seq2seq = bool(inner.config.is_encoder_decoder)
        self.accepted = set(inspect.signature(inner.forward).parameters)
        self.device = device_of(model)
        self.limits = Limits.of(inner)

    def check(self, rows: Iterable[Row]) -> None:
        """Raise `DataError` at the first row that does not fit into the model, before any is scored."""

        def longest(row: Row) -> list[int]:
            pairs = [
                encode_row(row.prompt, text, self.tokenizer, self.seq2seq) for text in row.candidates or (row.target,)
            ]
            return max((pair.context if self.seq2seq else pair.context + pair.continuation for pair in pairs), key=len)

        new = 0 if self.seq2seq else self.max_new_tokens
        self.limits.check_rows(rows, longest, self.tokenizer, lambda row: 0 if row.choices else new)

    @torch.no_grad()
    def score(self, rows: Sequence[Row], work: Progress | None = None) -> list[RowScore]:
        """Score every row, in the given order; each batch adds its `cost` to ``work``.

        Choices are ranked by summed log-likelihood; free answers are generated greedily and judged by their
        row's metric (`radargate.evaluation.answers`). The gold answer's NLL counts its own tokens, without the end token.

        Raises:
            DataError: a row's metric needs a package that is not installed.
        """
        check_metrics(rows)
        encoded = [
            [encode_row(row.prompt, text, self.tokenizer, self.seq2seq) for text in (row.candidates or (row.target,))]
            for row in rows
        ]
        order = sorted(range(len(rows)), key=lambda i: -len(encoded[i][0].context))
        scores: dict[int, RowScore] = {}
        for batch in self._batches(order, encoded):
            candidates = [_Candidate(i, pair, []) for i in batch for pair in encoded[i]]
            with straight_head(self.model):
                self._fill(candidates, batch)
            answers = self._generate([rows[i] for i in batch if not rows[i].choices])
            for i in batch:
                mine = [c for c in candidates if c.row == i]
                scores[i] = _row_score(rows[i], mine, answers)
            if work is not None:
                work.add(
                    sum(self.cost(rows[i]) for i in batch), f"{rows[batch[0]].task}: {len(scores)}/{len(rows)} rows"
                )
        return [scores[i] for i in range(len(rows))]

    def cost(self, row: Row) -> float:
        """Roughly how long a row takes, in tokens read."""
        read = TEMPLATE + (len(row.prompt) + sum(map(len, row.candidates or (row.target,)))) / LETTERS
        return read + (0.0 if row.choices else MADE * self.max_new_tokens)

    @torch.no_grad()
    def nll(self, rows: Sequence[Row]) -> list[float]:
        """Gold-answer NLL of every row in nats a token, as `score` counts it; nothing is ranked or generated."""
        gold = [row.target if row.answer_index is None else row.candidates[row.answer_index] for row in rows]
        pairs = [
            encode_row(row.prompt, text, self.tokenizer, self.seq2seq) for row, text in zip(rows, gold, strict=True)
        ]
        order = sorted(range(len(rows)), key=lambda i: -len(pairs[i].context))
        found = [0.0] * len(rows)
        for batch in self._batches(order, [[pair] for pair in pairs]):
            candidates = [_Candidate(i, pairs[i], []) for i in batch]
            with straight_head(self.model):
                self._fill(candidates, batch)
            for candidate in candidates:
                own = candidate.loglikelihoods[candidate.pair.lead :]
                found[candidate.row] = -sum(own) / max(len(own), 1)
        return found

    def _batches(self, order: list[int], encoded: list[list[EncodedPair]]) -> Iterator[list[int]]:
        batch: list[int] = []
        for i in order:
            width = max(len(encoded[j][0].context) for j in [*batch, i])
            if batch and (len(batch) == self.batch_size or width * (len(batch) + 1) > MAX_BATCH_TOKENS):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _fill(self, candidates: list[_Candidate], batch: list[int]) -> None:
        """Compute the log-likelihood of every token of every candidate."""
        place = {row: position for position, row in enumerate(batch)}
        contexts = {c.row: c.pair.context for c in candidates}
        ids, mask = self._pad([contexts[row] for row in batch], left=not self.seq2seq)
        owner = torch.tensor([place[c.row] for c in candidates], device=self.device)
        if self.seq2seq:
            self._fill_seq2seq(candidates, ids, mask, owner)
            return
        out = self.model(input_ids=ids, attention_mask=mask, use_cache=True, **self._extras(mask, ids.shape[1], keep=1))
        first = out.logits[:, -1].float().log_softmax(-1)
        for candidate, position in zip(candidates, owner.tolist(), strict=True):
            candidate.loglikelihoods.append(float(first[position, candidate.pair.continuation[0]]))
        longer = [j for j, c in enumerate(candidates) if len(c.pair.continuation) > 1]
        if not longer:
            return
        picked = owner[longer]
        cache = cache_in(out)
        cache.batch_select_indices(picked)
        tails = [candidates[j].pair.continuation for j in longer]
        tail_ids, tail_mask = self._pad([tail[:-1] for tail in tails], left=False)
        full_mask = torch.cat([mask[picked], tail_mask], 1)
        out = self.model(
            input_ids=tail_ids,
            attention_mask=full_mask,
            use_cache=True,
            **{cache_name(self.accepted): cache},
            **self._extras(full_mask, tail_ids.shape[1]),
        )
        logs = out.logits.float().log_softmax(-1)
        for position, j in enumerate(longer):
            rest = torch.tensor(tails[position][1:], device=self.device)
            candidates[j].loglikelihoods.extend(logs[position, : len(rest)].gather(-1, rest[:, None])[:, 0].tolist())

    def _fill_seq2seq(self, candidates: list[_Candidate], ids: Tensor, mask: Tensor, owner: Tensor) -> None:
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        encoded = inner.get_encoder()(input_ids=ids, attention_mask=mask)
        for key, value in encoded.items():
            encoded[key] = value[owner] if isinstance(value, Tensor) else value
        labels, _ = self._pad([c.pair.continuation for c in candidates], left=False)
        out = self.model(encoder_outputs=encoded, attention_mask=mask[owner], labels=labels)
        logs = out.logits.float().log_softmax(-1)
        for position, candidate in enumerate(candidates):
            target = torch.tensor(candidate.pair.continuation, device=self.device)
            candidate.loglikelihoods.extend(logs[position, : len(target)].gather(-1, target[:, None])[:, 0].tolist())

    def _generate(self, rows: list[Row]) -> dict[str, str]:
        if not rows:
            return {}
        texts = generate(self.model, self.tokenizer, [row.prompt for row in rows], max_new_tokens=self.max_new_tokens)
        return {_key(row): text for row, text in zip(rows, texts, strict=True)}

    def _extras(self, mask: Tensor, width: int, keep: int = 0) -> dict[str, Any]:
        extras: dict[str, Any] = {"position_ids": positions(mask)[:, -width:]}
        if keep:
            extras["logits_to_keep"] = keep
        return {name: value for name, value in extras.items() if name in self.accepted}

    def _pad(self, rows: Sequence[Sequence[int]], left: bool) -> tuple[Tensor, Tensor]:
        ids, mask = pad(rows, self.tokenizer.pad_token_id, left)
        return ids.to(self.device), mask.to(self.device)


@torch.no_grad()
def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int = 32, **options: Any
) -> list[str]:
    """Answers to prompts, greedy unless options say otherwise; prompts are rendered as in training.

    Args:
        model: a causal or encoder–decoder model, composed or not.
        tokenizer: its tokenizer.
        prompts: what users ask.
        max_new_tokens: tokens of an answer at most.
        **options: anything ``model.generate`` takes.

    Returns:
        The answers, without special tokens.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if answers_with(inner) != "text":
        raise BaseModelError(
            f"{type(inner).__name__} says labels and writes no text. Score it on rows with `label`: radargate eval."
        )
    seq2seq = bool(inner.config.is_encoder_decoder)
    pairs = [encode_row(prompt, "x", tokenizer, seq2seq) for prompt in prompts]
    # a generated answer starts after the whole rendered context, white space included
    contexts = [p.context + p.continuation[: p.lead] for p in pairs]
    limits = Limits.of(inner)
    for prompt, context in zip(prompts, contexts, strict=True):
        limits.check(context, f"prompt {shown(prompt, 40)!r}", tokenizer, 0 if seq2seq else max_new_tokens)
    ids, mask = pad(contexts, tokenizer.pad_token_id, left=not seq2seq)
    device = device_of(model)
    with straight_head(model):
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=stop_tokens(tokenizer) or None,
            **{"do_sample": False, **options},
        )
    fresh = out if seq2seq else out[:, ids.shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(fresh, skip_special_tokens=True)]


def _row_score(row: Row, candidates: list[_Candidate], answers: dict[str, str]) -> RowScore:
    sums = [sum(c.loglikelihoods) for c in candidates]
    gold = row.answer_index or 0
    own = candidates[gold].loglikelihoods[candidates[gold].pair.lead :]
    if not row.choices:
        text = answers[_key(row)]
        verdict = judge(row, text)
        return RowScore(
            row.id,
            verdict.correct,
            None,
            text,
            None,
            -sum(own),
            len(own),
            metric=metric_of(row),
            values=verdict.values,
            stats=verdict.stats,
            timed_out=verdict.timed_out,
        )
    lengths = [max(len(text), 1) for text in row.candidates]
    best = max(range(len(sums)), key=lambda i: sums[i])
    best_norm = max(range(len(sums)), key=lambda i: sums[i] / lengths[i])
    return RowScore(row.id, best == gold, best_norm == gold, best, best_norm, -sum(own), len(own), tuple(sums))


def _key(row: Row) -> str:
    return f"{row.task}\0{row.id}\0{row.prompt}"
