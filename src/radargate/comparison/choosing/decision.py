"""Which system to take: the simplest of those that are not significantly behind the best. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radargate.comparison.ranking import HIGHER_IS_BETTER, SIGNIFICANT, PairedTest, Standing, compare_pairs, standings
from radargate.comparison.results import Results, System, read_results


@dataclass(frozen=True)
class Decision:
    """What the rows to choose by say.

    Attributes:
        results: of every system, each at the end of the last round that it was in.
        standings: metric → systems, best first.
        most_accurate: label of the system of the highest accuracy.
        leader: label of the lowest NLL among systems whose accuracy is not significantly below the highest.
        level: labels that are not significantly behind either, the simplest first.
        behind: metric → label → its difference to the best by that metric, with p.
    """

    results: Results
    standings: Mapping[str, Sequence[Standing]]
    most_accurate: str
    leader: str
    level: tuple[str, ...]
    behind: Mapping[str, Mapping[str, PairedTest]]

    @property
    def taken(self) -> str:
        """Label of the system to take."""
        return self.level[0]

    def adapter(self) -> str | None:
        """Label of the best adapter alone, by accuracy and then by NLL."""
        return _best([s for s in self.results.systems.values() if s.kind == "expert"], self.results)

    def system(self, label: str) -> System:
        """One of the systems."""
        return self.results.systems[label]


def decide(records: Iterable[Mapping[str, Any]], order: Sequence[str]) -> Decision:
    """Read off the records which system to take.

    Args:
        records: of the cells; of several of one label the last counts.
        order: labels, the simplest first.
    """
    results = read_results(records)
    systems = [results.systems[label] for label in order if label in results.systems]
    labels = [system.label for system in systems]
    most_accurate = _best(systems, results)
    assert most_accurate is not None
    accuracy = _behind(results, "acc", labels, most_accurate)
    among = [label for label in labels if not _worse(accuracy.get(label))]
    leader = min(among, key=lambda label: _mean(results, "nll", label))
    nll = _behind(results, "nll", labels, leader)
    level = tuple(label for label in among if not _worse(nll.get(label)))
    ranked = {metric: [s for s in standings(results, metric) if s.label in labels] for metric in ("acc", "nll")}
    return Decision(results, ranked, most_accurate, leader, level, {"acc": accuracy, "nll": nll})


def _mean(results: Results, metric: str, label: str) -> float:
    return float(results.systems[label].seed_means(metric, results.tasks_of(metric)).mean())


def _best(systems: Sequence[System], results: Results) -> str | None:
    """The most accurate; of several the one with the lowest NLL."""
    if not systems:
        return None
    return max(systems, key=lambda s: (_mean(results, "acc", s.label), -_mean(results, "nll", s.label))).label


def _behind(results: Results, metric: str, labels: Sequence[str], best: str) -> dict[str, PairedTest]:
    pairs = [(label, best) for label in labels if label != best]
    return {test.first: test for test in compare_pairs(results, metric, pairs)}


def _worse(test: PairedTest | None) -> bool:
    """Significantly worse than the best, uncorrected: a system is passed over at the first doubt."""
    return test is not None and test.p < SIGNIFICANT and (test.difference > 0) != HIGHER_IS_BETTER[test.metric]
