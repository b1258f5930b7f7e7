"""chrF and BLEU by sacrebleu, from counts of single sentences, so that rows can be resampled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

CORPUS_METRICS = ("chrf", "bleu")


@lru_cache(maxsize=1)
def _scorers() -> dict[str, Any]:
    from sacrebleu.metrics import BLEU, CHRF

    return {"chrf": CHRF(), "bleu": BLEU()}


def sentence_chrf(hypothesis: str, reference: str) -> float:
    """chrF of one sentence, 0 to 100."""
    return float(_scorers()["chrf"].sentence_score(hypothesis, [reference]).score)


def sentence_stats(hypothesis: str, reference: str) -> dict[str, tuple[int, ...]]:
    """metric → the counts of one sentence; a corpus has their sums."""
    return {
        name: tuple(int(count) for count in scorer._extract_corpus_statistics([hypothesis], [[reference]])[0])
        for name, scorer in _scorers().items()
    }


def corpus_value(metric: str, sums: Sequence[int]) -> float:
    """``"chrf"`` or ``"bleu"`` of a corpus, 0 to 100, from its summed counts."""
    return float(_scorers()[metric]._compute_score_from_stats([int(count) for count in sums]).score)


def signature(metric: str) -> str:
    """sacrebleu's own words for how it computed a metric, with its version."""
    import sacrebleu

    scorer = _scorers()[metric]
    order = "nrefs:1|case:mixed"
    settings = (
        f"{order}|eff:no|tok:13a|smooth:{scorer.smooth_method}"
        if metric == "bleu"
        else f"{order}|eff:yes|nc:{scorer.char_order}|nw:{scorer.word_order}|space:no"
    )
    return f"{settings}|version:{sacrebleu.__version__}"
