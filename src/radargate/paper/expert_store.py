"""The experts of an experiment: trained once for each base, task and recipe, or given by the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from radargate.errors import AdapterError
from radargate.experts.adapters import read_adapter
from radargate.io.records import content_hash
from radargate.paper.points import Material, slug
from radargate.training.experts import rows_read, train_experts
from radargate.training.hydra import train_hydra_experts
from radargate.training.options import ExpertOptions


@dataclass(frozen=True)
class ExpertStore:
    """Where experts come from.

    Attributes:
        folder: what trained experts are kept in.
        given: a folder of adapter folders named like tasks, used instead.
        recipe: how experts are trained.
        material: the rows they are trained on.
        device: where to train.
        dtypes: base → its dtype; None, or a base that is not in it, for the checkpoint's own.
    """

    folder: Path
    given: Path | None
    recipe: ExpertOptions
    material: Material
    device: str | None = None
    dtypes: Mapping[str, str | None] = field(default_factory=dict)

    def check(self, tasks: Sequence[str]) -> None:
        """Read the headers of given adapters, before any model is loaded.

        Raises:
            AdapterError: a task has no adapter, or one is refused.
        """
        if self.given is None:
            return
        missing = [task for task in tasks if not (self.given / task / "adapter_config.json").is_file()]
        if missing:
            there = sorted(path.parent.name for path in self.given.glob("*/adapter_config.json"))
            raise AdapterError(
                f"`experts` {self.given}: no adapter for {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}, expected a "
                f"folder of that name for each task. Found: {', '.join(there) or 'none'}. Leave `experts` out to train them."
            )
        for task in tasks:
            read_adapter(task, self.given / task)

    def hashes(self, base: str, tasks: Sequence[str], architecture: str) -> dict[str, str]:
        """Task → hash of its given adapter, or of all that determines the one that will be trained."""
        if self.given is not None:
            return {task: read_adapter(task, self.given / task).file.sha256 for task in tasks}
        made = content_hash(
            [asdict(self.recipe), self.material.source_hash, self.dtypes.get(base), self._shared(tasks, architecture)]
        )
        return dict.fromkeys(tasks, made)

    def rows_read(self, task: str) -> int:
        """Rows that the training of an expert reads, repeats counted; for a given one that does not say so, as the recipe has it."""
        known = rows_read(self.given / task) if self.given is not None else None
        return self.recipe.steps * self.recipe.batch_size if known is None else known

    def missing(self, base: str, identity: str, tasks: Sequence[str], architecture: str) -> list[str]:
        """The tasks whose expert is still to be trained; of architectures that share them the first counts."""
        if self.given is not None:
            return []
        folder = self._folder(base, identity, tasks, architecture)
        return [task for task in tasks if not (folder / task / "adapter_config.json").exists()]

    def folders(self, base: str, identity: str, tasks: Sequence[str], architecture: str, model: Any) -> dict[str, str]:
        """Task → folder of its adapter; those not there yet are trained."""
        if self.given is not None:
            return {task: str(self.given / task) for task in tasks}
        folder = self._folder(base, identity, tasks, architecture)
        rows = {task: self.material.train[task] for task in tasks}
        if self.missing(base, identity, tasks, architecture):
            train = train_hydra_experts if architecture == "hydra" else train_experts
            train(model, rows, folder, self.recipe, resume=True, device=self.device)
        return {task: str(folder / task) for task in tasks}

    def _folder(self, base: str, identity: str, tasks: Sequence[str], architecture: str) -> Path:
        shared = self._shared(tasks, architecture)
        key = content_hash([identity, asdict(self.recipe), self.material.source_hash, self.dtypes.get(base), shared])
        return self.folder / f"{slug(base)}{'-shared-A' if shared else ''}-{key[:12]}"

    @staticmethod
    def _shared(tasks: Sequence[str], architecture: str) -> list[str]:
        """Hydra's A is trained on all tasks of a bank, so its experts belong to that bank; others to no bank."""
        return list(tasks) if architecture == "hydra" else []
