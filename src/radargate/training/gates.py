"""``radargate train``: compose, train the gates, keep the train contract, save a bundle."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from peft import PeftModel

from radargate import ops
from radargate.base_models.dtype import CHECKPOINT
from radargate.base_models.loading import base_dtype, load_base, load_tokenizer
from radargate.composition.composing import compose, radar_config, radar_layers
from radargate.composition.config import gate_class
from radargate.composition.verify import lock_base
from radargate.data.batches import AnswerCollator, EncodedRow, encode_rows
from radargate.data.rows import Row, rows_hash
from radargate.data.sources import load_rows
from radargate.errors import OptionError, RadarGateError
from radargate.experts.adapters import read_adapter
from radargate.experts.domains import TEXTS, domain_vectors
from radargate.gates.base import make_options
from radargate.gates.rules.searched import SearchedRule
from radargate.io.disk import AGAIN, flush, writing
from radargate.io.processes import is_main_process
from radargate.io.progress import duration
from radargate.io.records import append_records, file_hash, make_record, read_records, write_atomic
from radargate.training import checkpoints, processes
from radargate.training.contract import TrainContract
from radargate.training.loop import AnswerTrainer, training_arguments, training_run
from radargate.training.schedule import DenseStart, parameter_groups
from radargate.training.search import search_weights
from radargate.training.texts import MOST_TEXTS, describe_texts, routers_of

# rates for the printed form are the paper's own (Sec. 5.2); the others come from validation rows of well-trained experts,
# dense start from a study of real sites (docs/log.md)
DEFAULTS: dict[str | None, dict[str, float]] = {
    None: {"lr": 5e-3, "rotation_lr": 5e-3, "dense_start": 0.5},
    "paper": {"lr": 1e-4, "rotation_lr": 1e-4, "dense_start": 0.0},
}
WORK = ".bundle.tmp"  # where a bundle is put together, in its own folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GateTraining:
    """How gates are trained. None takes the preset's value."""

    architecture: str = "mole"
    architecture_options: dict[str, Any] = field(default_factory=dict)
    gate: str = "radar"
    top_k: int | None = 2
    preset: str | None = None
    gate_options: dict[str, Any] = field(default_factory=dict)
    steps: int = 120
    batch_size: int = 8
    lr: float | None = None
    rotation_lr: float | None = None
    dense_start: float | None = None
    seed: int = 0
    max_length: int = 512
    save_every: int = 20

    def resolved(self) -> GateTraining:
        """The same with the preset's values filled in.

        Raises:
            OptionError: ``dense_start`` is no share of the steps.
        """
        values = asdict(self)
        for key, value in DEFAULTS[self.preset if self.preset in DEFAULTS else None].items():
            if values[key] is None:
                values[key] = value
        DenseStart(values["dense_start"])  # raises where the share cannot be
        return GateTraining(**values)


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
        options: gate, rates, steps.
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
    out, options = Path(out), options.resolved()
    with training_run(out, options):
        by_task = load_rows(data, "train", tasks)
        rows = [row for task_rows in by_task.values() for row in task_rows]
        read = {name: read_adapter(name, source) for name, source in adapters.items()}
        known = run_dtype(out, base, dtype, device)
        run = {
            "base": base,
            "adapters": {k: str(v) for k, v in adapters.items()},
            "data": str(data),
            "tasks": tasks,
            "options": asdict(options),
            "dtype": known,
            "gate_only": gate_only,
            "data_hash": rows_hash(rows),
            "experts": {name: adapter.sha256() for name, adapter in read.items()},
        }
        if _claim(out, run, resume):
            return _read_own(out / "record.json")
        _searched(options)  # a missing package is said before the model is loaded
        again = AGAIN if resume else f"{AGAIN} with --resume"
        tokenizer, loaded = load_tokenizer(base), load_base(base, dtype=known or CHECKPOINT, device=device)
        gate_options = resolve_gate_options(options, loaded, tokenizer, by_task, list(adapters))
        model = compose(
            loaded,
            read,
            architecture=options.architecture,
            architecture_options=options.architecture_options,
            gate=options.gate,
            top_k=options.top_k,
            preset=options.preset,
            seed=options.seed,
            allow_inactive=allow_inactive,
            **gate_options,
        )
        seq2seq = bool(cast(Any, model.get_base_model()).config.is_encoder_decoder)
        encoded = encode_rows(rows, tokenizer, max_length=options.max_length, encoder_decoder=seq2seq)
        layers = radar_layers(model)
        if shard:
            PartialState(cpu=device == "cpu")  # connects the processes
            processes.shard(model)
        logger.info(
            f"{len(adapters)} experts at {len(layers)} layers of the model; {encoded.report(options.max_length)}"
        )
        backend, reason = ops.choose_backend(device=device or "cpu")
        logger.info(f"backend: {backend} ({reason}).")
        collator = AnswerCollator(tokenizer.pad_token_id, seq2seq)
        with writing("checkpoints and metrics", out, again=again):
            metrics = fit_gates(
                model,
                encoded.rows,
                collator,
                out,
                options,
                resume=resume,
                device=device,
                tensorboard=tensorboard,
            )
        metrics["mean_angle"] = mean_angle(model, encoded.rows[: options.batch_size], collator)
        if metrics["mean_angle"] is not None:
            weak = " The rotation did next to nothing." if metrics["mean_angle"] < 0.02 else ""
            logger.info(
                f"mean rotation angle: {metrics['mean_angle']:.3f} rad ({math.degrees(metrics['mean_angle']):.0f}°).{weak}"
            )
        radar_config(model).gate_only = gate_only
        processes.gather_experts(model)
        facts = {
            "base": base,
            "data": Path(data).name,
            "data_hash": rows_hash(rows),
            "rows": len(encoded.rows),
            "dropped": encoded.dropped,
            "options": asdict(options),
            "dtype": known or str(loaded.dtype).removeprefix("torch."),
            "experts": {name: known["sha256"] for name, known in radar_config(model).expert_facts.items()},
        }
        if is_main_process():
            with writing("the bundle", out, again=again):
                _save(model, out, metrics, facts, base)
        processes.wait()
        record = _read_own(out / "record.json")
        if not is_main_process():
            return record
        _tidy(out)
        logger.info(f"saved to {out} after {duration(metrics['seconds'])}.")
        return record


def run_dtype(out: Path, base: str, asked: str | None, device: str | None) -> str | None:
    """The base's dtype for a run in ``out``: one that goes on keeps what it began with, on any machine.

    Returns:
        None where the run was begun by a version that kept the checkpoint's own and wrote nothing down.
    """
    if asked in (None, CHECKPOINT) and (out / "run.json").exists():
        begun = _read_own(out / "run.json").get("dtype")
        logger.info("dtype: %s, as this run began.", begun or "the checkpoint's own")
        return begun
    return processes.agreed(base_dtype(base, asked, device).name, device)


def _tidy(out: Path) -> None:
    """Drop what only an unfinished run needs, also where a kill came between its record and this."""
    for folder in (out / WORK, *(out / "checkpoints").glob("checkpoint-*")):
        shutil.rmtree(folder, ignore_errors=True)


def resolve_gate_options(
    options: GateTraining, base: Any, tokenizer: Any, by_task: Mapping[str, Sequence[Row]], experts: Sequence[str]
) -> dict[str, Any]:
    """The gate's options, with what they ask to be computed from rows: Nexus' ``domains="hidden"``.

    Raises:
        OptionError: an expert has no task of its name, so nobody knows its domain.
    """
    if options.gate != "nexus" or options.gate_options.get("domains") != "hidden":
        return options.gate_options
    missing = [name for name in experts if name not in by_task]
    if missing:
        raise OptionError(
            f"domains='hidden' reads the rows of each expert's own task, and there is no task named {missing[0]!r}. "
            "Name the experts like their tasks (NAME=PATH), or use domains=prototype."
        )
    texts = {name: [row.prompt for row in by_task[name][:TEXTS]] for name in experts}
    return {**options.gate_options, "domains": domain_vectors(base, tokenizer, texts)}


def fit_gates(
    model: PeftModel,
    rows: Sequence[EncodedRow],
    collator: AnswerCollator,
    out: Path,
    options: GateTraining,
    *,
    resume: bool = False,
    device: str | None = None,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Train the gates of a composed model, or search a rule's weights, or do nothing where nothing is to be found.

    Returns:
        ``trained_parameters``, ``seconds``, ``final_loss``, ``curve`` ([step, loss] pairs) and, of a search, ``search``.
    """
    if any(p.requires_grad for p in model.parameters()):
        if routers_of(model):
            some = rows[:: -(-len(rows) // MOST_TEXTS)]
            describe_texts(model, [row.prompt(collator.encoder_decoder) for row in some])
        return _train(model, rows, collator, out, options, resume, device, tensorboard)
    nothing: dict[str, Any] = {"trained_parameters": 0, "seconds": 0.0, "final_loss": None, "curve": []}
    if _searched(options):
        return {**nothing, **search_weights(model, rows, collator, seed=options.seed, device=device)}
    logger.info(f"{options.gate} has nothing to train; saved as it is.")
    return nothing


def _searched(options: GateTraining) -> bool:
    """Whether the rule finds its weights by a search instead of gradients."""
    kind = gate_class(options.gate)
    return issubclass(kind, SearchedRule) and kind.searches(make_options(kind, options.gate_options))


def _save(model: PeftModel, out: Path, metrics: dict[str, Any], facts: dict[str, Any], base: str) -> dict[str, Any]:
    """Put bundle, metrics and record into ``out``; what needs room is written first, then renamed into place."""
    work, curve = out / WORK, out / "checkpoints" / "metrics.jsonl"
    shutil.rmtree(work, ignore_errors=True)
    try:
        model.save_pretrained(str(work), save_embedding_layers=False)
        lock_base(work, base)
        facts["gate_sha256"] = file_hash(work / "adapter_model.safetensors")
        record = make_record("train", facts["options"]["gate"], metrics, **facts)
        write_atomic(work / "record.json", json.dumps(record, indent=2))
        if curve.exists():
            shutil.copyfile(curve, work / "metrics.jsonl")
        _note(out / "records.jsonl", record)
        flush(work)
        # a config says that the bundle is whole, a record that the run is finished: they come last
        last = ["adapter_config.json", "record.json"]
        for file in sorted(work.iterdir(), key=lambda f: last.index(f.name) if f.name in last else -1):
            file.replace(out / file.name)
        flush(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return record


def _train(
    model: PeftModel,
    rows: Sequence[EncodedRow],
    collator: AnswerCollator,
    out: Path,
    options: GateTraining,
    resume: bool,
    device: str | None,
    tensorboard: bool,
) -> dict[str, Any]:
    """Train the gates of a composed model under the train contract; returns trained parameters, seconds, last loss, curve."""
    assert options.lr is not None and options.dense_start is not None
    contract = TrainContract(model)
    groups = parameter_groups(model, options.lr, options.rotation_lr)
    rates = ", ".join(f"{group['name']} rate {group['lr']:g}" for group in groups)
    logger.info(
        f"{sum(p.numel() for p in contract.gates.values()):,} gate numbers to train; {rates}; "
        f"dense for the first {options.dense_start:.0%} of {options.steps} steps."
    )
    arguments = training_arguments(
        out / "checkpoints",
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        seed=options.seed,
        save_every=options.save_every,
        tensorboard=tensorboard,
        device=device,
    )
    trainer = AnswerTrainer(
        model, rows, arguments, collator, groups=groups, callbacks=[contract, DenseStart(options.dense_start)]
    )
    checkpoint = checkpoints.newest(out / "checkpoints") if resume else None
    if checkpoint is not None:
        logger.info(f"resuming from {checkpoint.name}.")
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    for line in contract.finish(model):
        logger.info(line)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {
        "trained_parameters": sum(p.numel() for p in contract.gates.values()),
        "seconds": result.metrics["train_runtime"],
        "final_loss": losses[-1] if losses else None,
        "curve": [[line["step"], line["loss"]] for line in trainer.state.log_history if "loss" in line],
    }


def _note(file: Path, record: dict[str, Any]) -> None:
    """Append a run's record, once: a run that was killed between its record and its bundle has one already."""
    key = ("suite", "case", "config_hash")
    if not file.is_file() or all(any(old.get(k) != record[k] for k in key) for old in read_records(file)):
        append_records(file, [record])


def _read_own(file: Path) -> dict[str, Any]:
    """A JSON object that an earlier run left in its folder.

    Raises:
        RadarGateError: it is damaged.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"found {type(found).__name__}, expected an object")
    except (OSError, ValueError, RecursionError) as error:
        raise RadarGateError(
            f"{file} is damaged ({error}). Delete it to begin anew with --resume, or choose another --out."
        ) from error
    return found


@torch.no_grad()
def mean_angle(model: PeftModel, rows: Sequence[EncodedRow], collator: AnswerCollator) -> float | None:
    """Mean absolute rotation angle over sites, chosen experts and real tokens, in radians; None without rotation."""
    sums: list[float] = []
    batch = collator(list(rows))
    keep = batch["attention_mask"].bool()

    def look(layer: Any, args: tuple[Any, ...]) -> None:
        for name in layer.active_adapters:
            gated = layer.gated(args[0], name)
            if gated.turn is not None and args[0].shape[:-1] == keep.shape:
                turn = gated.turn
                angle = ops.angles(turn.codes, turn.up, gated.indices, turn.angle_norm).abs().mean((-1, -2))
                sums.append(float(angle[keep.to(angle.device)].mean()))

    hooks = [layer.register_forward_pre_hook(look) for layer in radar_layers(model)]
    try:
        device = next(model.parameters()).device
        model.eval()
        model(**{key: value.to(device) for key, value in batch.items() if key != "position_ids"})
    finally:
        for hook in hooks:
            hook.remove()
    return sum(sums) / len(sums) if sums else None


def _claim(out: Path, run: dict[str, Any], resume: bool) -> bool:
    """Take ``out`` for this run; True where the same run is finished there already. The main process takes it."""
    if not is_main_process():
        return resume and (out / "record.json").exists()
    run = json.loads(json.dumps(run))
    file = out / "run.json"
    if file.exists():
        if not resume:
            raise RadarGateError(f"{out} already holds a run. Use --resume to continue it, or choose another --out.")
        before = _read_own(file)
        differing = [key for key in run if run[key] != before.get(key)]
        if differing:
            key = differing[0]
            raise RadarGateError(
                f"--resume: the run in {out} had another {key} ({json.dumps(before.get(key))[:200]}). Repeat its "
                "options, data and adapters, or choose another --out."
            )
        if (out / "record.json").exists():
            _tidy(out)
            logger.info(f"{out} is finished already.")
            return True
    elif (out / "adapter_config.json").exists():
        raise RadarGateError(f"{out} already holds an adapter or bundle; choose another --out.")
    with writing("the run", out):
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(run, indent=2))
    return False
