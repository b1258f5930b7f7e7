"""Training of gates: compose, train under the train contract, save a bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from peft import PeftModel

from radargate import ops
from radargate.base_models.dtype import CHECKPOINT
from radargate.base_models.loading import load_tokenizer
from radargate.composition.composing import compose, load_for, radar_config, radar_layers
from radargate.composition.config import gate_class
from radargate.data.batches import EncodedRows
from radargate.data.rows import row_hash, rows_hash
from radargate.data.sources import load_rows
from radargate.errors import DataError
from radargate.experts.adapters import Adapter, read_adapter
from radargate.gates.base import ByTask, make_options
from radargate.gates.rules.searched import SearchedRule
from radargate.io.disk import AGAIN, writing
from radargate.io.processes import is_main_process
from radargate.io.progress import duration
from radargate.training import checkpoints, processes
from radargate.training.contract import TrainContract
from radargate.training.diagnostics import log_angle, mean_angle
from radargate.training.encoding import encode_for
from radargate.training.loop import AnswerTrainer, record_facts, training_arguments, training_run
from radargate.training.norms import describe_norms, norm_batches, rules_without_norms
from radargate.training.options import GateTraining
from radargate.training.own_rows import options_from_rows
from radargate.training.run_folder import RunFolder
from radargate.training.schedule import DenseStart, parameter_groups
from radargate.training.search import search_weights
from radargate.training.texts import MOST_TEXTS, describe_texts, routers_of

logger = logging.getLogger(__name__)


def train_gates(
    base: str,
    adapters: Mapping[str, str | Path],
    data: str,
    out: str | Path,
    options: GateTraining,
    *,
    tasks: list[str] | None = None,
    resume: bool = False,
    allow_inactive: bool = False,
    gate_only: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    tensorboard: bool = False,
    shard: bool = False,
) -> dict[str, Any]:
    """Train the gates of a composition and save it as a bundle in ``out``.

    Args:
        base: base model name.
        adapters: name → folder or Hub id.
        data: where the rows are (split ``train``).
        out: the bundle's folder; checkpoints live in ``out/checkpoints`` until the end.
        options: gate, learning rates, steps.
        tasks: train on these only.
        resume: go on from the newest complete checkpoint; the result is bit-equal to an undisturbed run.
        allow_inactive: accept an expert that changes nothing.
        gate_only: save the gates without the experts, which stay where they are.
        dtype: of the base model; None goes on with what a resumed run began with, or follows the rule of `load_base`.
        device: where to train.
        tensorboard: also log to TensorBoard.
        shard: under a launcher of several processes, share base and experts out among them.

    Returns:
        The run's record.

    Raises:
        RadarGateError: ``out`` is taken, the resumed run had other options, or the contract is broken.
        StorageError: ``out`` cannot be written, or another run writes there now.
        OutOfMemoryError: it needs more memory than there is.
    """
    folder = RunFolder(out)
    options = folder.begun(options)
    again = AGAIN if resume else f"{AGAIN} with `resume`"
    with training_run(folder.path, options):
        by_task = load_rows(data, "train", tasks)
        _check_tasks(options, by_task, adapters)
        rows = [row for task_rows in by_task.values() for row in task_rows]
        read = {name: read_adapter(name, source) for name, source in adapters.items()}
        known = folder.dtype(base, dtype, device)
        run = {
            "base": base,
            "adapters": {k: str(v) for k, v in adapters.items()},
            "data": str(data),
            "tasks": tasks,
            "options": asdict(options),
            "dtype": known,
            "gate_only": gate_only,
            "data_hash": rows_hash(rows),
            "experts": {name: adapter.file.sha256 for name, adapter in read.items()},
        }
        if folder.claim(run, resume):
            return folder.read()
        model, encoded = prepare(base, read, by_task, options, known, device, allow_inactive)
        if shard:
            PartialState(cpu=device == "cpu")  # connects the processes
            processes.shard(model)
        with writing("checkpoints and metrics", folder.path, again=again):
            metrics = fit_gates(
                model, encoded, folder.path, options, resume=resume, device=device, tensorboard=tensorboard
            )
        metrics["mean_angle"] = mean_angle(model, encoded, options.batch_size)
        log_angle(metrics["mean_angle"])
        facts = record_facts(cast(Any, model.get_base_model()), data, rows, encoded, options)
        facts |= {"base": base, "experts": {n: f["sha256"] for n, f in radar_config(model).expert_facts.items()}}
        facts["dtype"] = known or facts["dtype"]
        radar_config(model).gate_only = gate_only
        return _save(folder, model, metrics, facts, again)


def _check_tasks(options: GateTraining, by_task: ByTask, adapters: Mapping[str, Any]) -> None:
    kind = gate_class(options.gate)
    if kind.reads_own_rows(options.gate_options):
        return  # it finds rows for each expert
    made = make_options(kind, kind.take(dict(options.gate_options))[0])
    kind.check_tasks(made, by_task.keys(), list(adapters))


def prepare(
    base: str,
    adapters: Mapping[str, Adapter],
    by_task: ByTask,
    options: GateTraining,
    dtype: str | None,
    device: str | None,
    allow_inactive: bool,
) -> tuple[PeftModel, EncodedRows]:
    """Load the base, compose, and encode the rows of every task.

    Raises:
        RadarGateError: an adapter, an option or the rows do not fit; a missing package before the base is loaded.
    """
    _searched(options)
    tokenizer, loaded = load_tokenizer(base), load_for(base, adapters, options.head, dtype or CHECKPOINT, device)
    gate_options, adapters = options_from_rows(loaded, adapters, by_task, tokenizer, options, device)
    model = compose(
        loaded,
        adapters,
        architecture=options.architecture,
        architecture_options=options.architecture_options,
        gate=options.gate,
        top_k=options.top_k,
        preset=options.preset,
        seed=options.seed,
        allow_inactive=allow_inactive,
        head=options.head,
        **gate_options,
    )
    rows = [row for task_rows in by_task.values() for row in task_rows]
    encoded = encode_for(model.get_base_model(), rows, tokenizer, options)
    logger.info(f"{len(adapters)} experts at {len(radar_layers(model))} layers of the model; {encoded.report()}")
    backend, reason = ops.choose_backend(device=device or "cpu")
    logger.info(f"backend: {backend} ({reason}).")
    return model, encoded


def fit_gates(
    model: PeftModel,
    encoded: EncodedRows,
    out: Path,
    options: GateTraining,
    *,
    resume: bool = False,
    device: str | None = None,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Train the gates of a composed model, or search a rule's weights, or do nothing where nothing is to be found.

    Returns:
        ``trained_parameters``, ``seconds``, ``final_loss``, ``curve`` ([step, loss] pairs); of a training ``rows_seen``, hashes of
        the rows that steps took; of a search ``search``.
    """
    if any(p.requires_grad for p in model.parameters()):
        if any(not router.knows_texts for router in routers_of(model)):
            some = encoded.rows[:: -(-len(encoded.rows) // MOST_TEXTS)]
            describe_texts(model, [row.prompt(encoded.collator.encoder_decoder) for row in some])
        return _train(model, encoded, out, options, resume, device, tensorboard)
    nothing: dict[str, Any] = {"trained_parameters": 0, "seconds": 0.0, "final_loss": None, "curve": []}
    if _searched(options):
        return {**nothing, **search_weights(model, encoded, seed=options.seed, device=device)}
    if rules_without_norms(model):
        describe_norms(model, norm_batches(model, encoded, options.batch_size))
        return nothing
    logger.info(f"{options.gate} has nothing to train; saved as it is.")
    return nothing


def _searched(options: GateTraining) -> bool:
    """Whether the rule finds its weights by a search instead of gradients."""
    kind = gate_class(options.gate)
    return issubclass(kind, SearchedRule) and kind.searches(make_options(kind, options.gate_options))


def _own_rows(model: PeftModel, encoded: EncodedRows) -> dict[str, list[int]]:
    """Expert → indices of the rows of the task of its name.

    Raises:
        DataError: an expert has none.
    """
    own = {name: encoded.of_task(name) for name in radar_config(model).experts}
    for name, rows in own.items():
        if not rows:
            lost = f", {encoded.dropped[name]} are {encoded.options.too_long}" if name in encoded.dropped else ""
            raise DataError(
                f"expert {name!r} is trained alone on the rows of the task of its name, and there are none{lost}. Name the "
                "experts like their tasks (NAME=PATH), or let rows be longer."
            )
    return own


def _train(
    model: PeftModel,
    encoded: EncodedRows,
    out: Path,
    options: GateTraining,
    resume: bool,
    device: str | None,
    tensorboard: bool,
) -> dict[str, Any]:
    """Train the gates under the train contract; returns trained parameters, seconds, last loss and curve."""
    assert options.dense_start is not None
    own = _own_rows(model, encoded) if gate_class(options.gate).trains_alone else {}
    contract = TrainContract(model, max(1, len(own)))
    count = sum(p.numel() for p in contract.gates.values())
    groups = parameter_groups(model, *options.rates)
    rates = ", ".join(f"{group['name']} learning rate {group['lr']:g}" for group in groups)
    when = f"dense for the first {options.dense_start:.0%} of {options.steps} steps"
    if own:
        when = f"{options.steps} steps for each of {len(own)} experts alone, on {sum(map(len, own.values()))} rows of their own"
    logger.info(f"{count:,} trainable gate parameters; {rates}; {when}.")
    arguments = training_arguments(
        out / "checkpoints", options, save_every=options.save_every, tensorboard=tensorboard, device=device
    )
    callbacks = [contract, DenseStart(options.dense_start)]
    trainer = AnswerTrainer(
        model, encoded.rows, arguments, encoded.collator, groups=groups, callbacks=callbacks, alone=own
    )
    checkpoint = checkpoints.newest(out / "checkpoints") if resume else None
    if checkpoint is not None:
        logger.info(f"resuming from {checkpoint.name}.")
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    for line in contract.finish(model):
        logger.info(line)
    return {
        "trained_parameters": count,
        "seconds": result.metrics["train_runtime"],
        "final_loss": trainer.losses[-1][1] if trainer.losses else None,
        "curve": trainer.losses,
        "rows_seen": [row_hash(encoded.rows.source[i]) for i in sorted({i for step in trainer.order for i in step})],
    }


def _save(
    folder: RunFolder, model: PeftModel, metrics: dict[str, Any], facts: dict[str, Any], again: str
) -> dict[str, Any]:
    """Save the bundle and its record, from the main process; returns the record in all of them."""
    processes.gather_experts(model)
    if is_main_process():
        with writing("the bundle", folder.path, again=again):
            folder.save(model, metrics, facts)
    processes.wait()
    if is_main_process():
        folder.tidy()
        logger.info(f"saved to {folder.path} after {duration(metrics['seconds'])}.")
    return folder.read()
