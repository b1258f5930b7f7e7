"""The Trainer behind ``radargate experts`` and ``radargate train``."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from radargate.base_models.loading import base_name, straighten_head
from radargate.composition.layer import using
from radargate.data.batches import AnswerCollator, EncodedRow, EncodedRows, step_order
from radargate.data.options import Batching
from radargate.data.rows import Row, rows_hash
from radargate.errors import OptionError
from radargate.gates.call_state import current
from radargate.io.disk import alone, enough_memory
from radargate.io.processes import is_main_process
from radargate.io.progress import Progress
from radargate.io.records import write_atomic
from radargate.training import checkpoints, processes
from radargate.training.options import Training


@contextlib.contextmanager
def training_run(out: Path, options: Batching) -> Iterator[None]:
    """A training into ``out``: the only one there, and with a word on what to lower where memory runs out.

    Raises:
        StorageError: another run writes there now.
        OutOfMemoryError: it needs more memory than there is.
    """
    with alone(out) if is_main_process() else contextlib.nullcontext(), enough_memory("training", options.lower):
        yield


def training_arguments(
    out: str | Path,
    options: Training,
    *,
    save_every: int = 0,
    tensorboard: bool = False,
    device: str | None = None,
) -> TrainingArguments:
    """Arguments for `AnswerTrainer`: AdamW without decay, short warm-up then cosine, clipping at 1.

    Args:
        out: folder for checkpoints, metrics and logs.
        options: steps in all; rows a step, of all processes together; the learning rate of every parameter group that
            names none of its own; the seed of the order of rows and of any dropout.
        save_every: steps between checkpoints, 0 for none.
        tensorboard: also log to TensorBoard under ``out/tensorboard``.
        device: ``"cpu"`` forces the CPU.

    Raises:
        OptionError: TensorBoard is asked for and not installed.
    """
    if tensorboard:
        if importlib.util.find_spec("tensorboard") is None:
            raise OptionError(
                "`tensorboard` needs the package tensorboard. Install it with: pip install 'radargate[tensorboard]'."
            )
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(Path(out) / "tensorboard")
    assert options.lr is not None
    return TrainingArguments(
        output_dir=str(out),
        max_steps=options.steps,
        per_device_train_batch_size=processes.share_of(options.batch_size),
        learning_rate=options.lr,
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(0.05 * options.steps),
        optim="adamw_torch",
        logging_steps=max(1, min(10, options.steps // 10)),
        save_strategy="steps" if save_every else "no",
        save_steps=save_every or 500,
        seed=options.seed,
        data_seed=options.seed,
        report_to=["tensorboard"] if tensorboard else [],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=device == "cpu",
        dataloader_pin_memory=False,
    )


def record_facts(
    model: PreTrainedModel, data: Any, rows: Sequence[Row], encoded: EncodedRows, options: Training
) -> dict[str, Any]:
    """What a record says of a training: on which base, rows and options it was made."""
    return {
        "base": base_name(model),
        "data": None if isinstance(data, Mapping) else Path(data).name,
        "data_hash": rows_hash(rows),
        "rows": len(encoded.rows),
        "dropped": encoded.dropped,
        "options": asdict(options),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


class AnswerTrainer(Trainer):
    """Trainer that takes the loss on answers only and computes logits only where there are labels.

    Rows of every step are chosen beforehand from the seed, and checkpoints are those of
    `radargate.training.checkpoints`, so that a resumed run repeats an undisturbed one bit for bit.

    Args:
        model: a PEFT model.
        rows: training examples.
        args: see `training_arguments`.
        collator: pads examples into batches.
        groups: parameter groups, each with its own learning rate; None trains all trainable parameters at that of ``args``.
        callbacks: more callbacks.
        alone: expert → indices of its own rows: each expert is trained with all others switched off, on its own rows, for the
            steps of ``args``. They take turns, step by step, and every expert has the learning rate of its own step. A step
            takes as many rows of each, at most as the fewest.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Sequence[EncodedRow],
        args: TrainingArguments,
        collator: AnswerCollator,
        *,
        groups: list[dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        alone: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.groups, self.experts = groups, tuple(alone or ())
        turns = list(alone.values()) if alone else [range(len(rows))]
        fewest = min(map(len, turns))
        # a step never holds a row twice: with fewer rows than a batch, a step takes all of them
        args.per_device_train_batch_size = max(1, min(args.per_device_train_batch_size, fewest // args.world_size))
        together = args.per_device_train_batch_size * args.world_size
        orders = [
            step_order(lambda i, own=own: rows[own[i]].length, len(own), together, args.max_steps, args.seed)  # type: ignore[misc]
            for own in turns
        ]
        # one after the other: the first step of each, the second of each …
        self.order = [
            [own[i] for i in step]
            for steps in zip(*orders, strict=True)
            for own, step in zip(turns, steps, strict=True)
        ]
        args.max_steps, args.logging_steps = len(self.order), int(args.logging_steps) * len(turns)
        super().__init__(model=model, args=args, train_dataset=rows, data_collator=collator, callbacks=callbacks)
        for callback in list(self.callback_handler.callbacks):
            if type(callback).__name__ == "PrinterCallback":
                self.remove_callback(callback)  # our own progress lines replace its dictionaries
        self.progress = TrainingProgress(self.order, rows, Path(str(args.output_dir)))
        self.add_callback(self.progress)
        forward = inspect.signature(model.get_base_model().forward).parameters  # type: ignore[operator]
        self.seq2seq = collator.encoder_decoder
        self.slices_logits = "logits_to_keep" in forward and not collator.encoder_decoder
        self.takes_positions = "position_ids" in forward
        self.head_hook = straighten_head(model) if self.slices_logits else None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and leave the model without hooks and the screen without a bar."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.progress.close()
            self.remove_hooks()

    @property
    def losses(self) -> list[list[float]]:
        """[step, loss] pairs of what was logged."""
        return [[line["step"], line["loss"]] for line in self.state.log_history if "loss" in line]

    def remove_hooks(self) -> None:
        """Take the hook off the model's head."""
        if self.head_hook is not None:
            self.head_hook.remove()

    def answer_tokens(self, inputs: dict[str, Any]) -> int:
        """How many tokens of a batch `compute_loss` averages over."""
        labels = inputs["labels"] if self.seq2seq else inputs["labels"][:, 1:]
        return int((labels != -100).sum())

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return [index for step in self.order for index in step]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the given groups."""
        if self.groups is None:
            return super().create_optimizer(model)
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.groups, lr=self.args.learning_rate, weight_decay=0.0)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The learning rate of each step; where experts take turns, that of the expert's own step."""
        turns = max(1, len(self.experts))
        scheduler: Any = super().create_scheduler(num_training_steps // turns, optimizer)
        if turns > 1:
            scheduler.lr_lambdas = [lambda step, at=at: at(step // turns) for at in scheduler.lr_lambdas]
        return scheduler

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One step, of one expert alone where experts take turns."""
        if not self.experts:
            return super().training_step(*args, **kwargs)
        mine = self.experts[self.state.global_step % len(self.experts)]
        with using(cast(nn.Module, self.model), {name: float(name == mine) for name in self.experts}):
            return super().training_step(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy over the answer tokens of the step, those of other processes counted, in float32."""
        labels, wanted = inputs["labels"], dict(inputs)
        if not self.seq2seq:
            del wanted["labels"]  # the model would compute all logits and its own loss
        if not self.takes_positions:
            wanted.pop("position_ids", None)
        if self.slices_logits:
            # answers end at the last position (left padding): logits from one before the longest answer on
            first = int((labels != -100).any(0).nonzero()[0])
            wanted["logits_to_keep"] = labels.shape[1] - first + 1
            labels = labels[:, first:]
        elif not self.seq2seq:
            labels = labels[:, 1:]
        with current.block(answers=inputs["labels"] != -100):  # the labels themselves stay here
            outputs = model(**wanted)
        logits = outputs.logits if self.seq2seq else outputs.logits[:, :-1]
        total = _summed_loss(logits, labels)
        count = (labels != -100).sum()
        if num_items_in_batch is None:
            num_items_in_batch = self.accelerator.reduce(count, "sum")
        processes_here = self.accelerator.num_processes  # whose gradients are averaged
        loss = total / num_items_in_batch * processes_here
        auxiliary = outputs.get("aux_loss") if getattr(self.model, "peft_config", None) else None
        if auxiliary is not None:  # in the share of the step's labels that this call holds, as in RadarModel.forward
            loss = loss + auxiliary * (count / num_items_in_batch) * processes_here
        return (loss, outputs) if return_outputs else loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save:
            checkpoints.save(self)
        processes.wait()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoints.load_parameters(cast(nn.Module, self.model), Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_optimizer(self, Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_random_state(Path(checkpoint))


def _summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, or the squared error where a head of one number is to say labels that are numbers."""
    if labels.is_floating_point():
        return F.mse_loss(logits.reshape(-1).float(), labels.reshape(-1), reduction="sum")
    flat = logits.reshape(-1, logits.shape[-1]).float()
    return F.cross_entropy(flat, labels.reshape(-1), ignore_index=-100, reduction="sum")


class TrainingProgress(TrainerCallback):
    """Reports steps, loss, tokens a second and time left, and writes ``metrics.jsonl``."""

    def __init__(self, order: list[list[int]], rows: Sequence[EncodedRow], out: Path) -> None:
        lengths = [[rows[index].length for index in step] for step in order]
        self.tokens = [sum(each) for each in lengths]
        self.padded = [len(each) * max(each) for each in lengths]  # which the time goes by
        self.file = out / "metrics.jsonl"
        self.work: Progress | None = None
        self.loss = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop metrics that a crash left beyond the step now resumed from."""
        self.started, self.first_step = time.monotonic(), state.global_step
        self.work = Progress("training", sum(self.padded[state.global_step :])).__enter__()
        if not state.is_world_process_zero:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if self.file.exists() and state.global_step > 0:
            for line in self.file.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= state.global_step:
                        kept.append(line + "\n")
                except (json.JSONDecodeError, KeyError):
                    continue  # a line cut off by the crash
        write_atomic(self.file, "".join(kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Report one logging interval."""
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        step, seconds = state.global_step, time.monotonic() - self.started
        speed = sum(self.tokens[self.first_step : step]) / max(seconds, 1e-9)
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        line = {
            "step": step,
            "loss": loss,
            "grad_norm": norm,
            "lr": logs.get("learning_rate"),
            "tokens_per_second": round(speed, 1),
        }
        with open(self.file, "a") as file:
            file.write(json.dumps(line) + "\n")
        self.loss = f"  loss {loss:.4f}  {speed:,.0f} tokens/s"
        self._advance(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report one step, unless its loss follows at once."""
        if not control.should_log:
            self._advance(state)

    def _advance(self, state: Any) -> None:
        if self.work is not None:
            done = sum(self.padded[self.first_step : state.global_step])
            self.work.reach(done, f"step {state.global_step}/{state.max_steps}{self.loss}")

    def close(self) -> None:
        """Take the bar off the screen."""
        if self.work is not None:
            self.work.__exit__()
            self.work = None
