"""`radargate.trace`: run a text through a composition and write down what every gate does."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radargate import ops
from radargate.architectures.mole import MoLE
from radargate.base_models.limits import Limits
from radargate.base_models.loading import load_tokenizer
from radargate.base_models.offload import device_of
from radargate.composition.composing import radar_config, radar_layers
from radargate.composition.config import RadarConfig
from radargate.composition.layer import RadarLayer, reads_encoder, using
from radargate.data.prompts import encode_row
from radargate.errors import OptionError
from radargate.explorer.files import SiteTrace, Trace, write_facts, write_site
from radargate.explorer.inputs import Inputs, inputs_of, moved
from radargate.explorer.pairs import Pairs
from radargate.explorer.tokens import token_texts
from radargate.gates.call_state import current
from radargate.io.disk import writing
from radargate.ops.turning import angle


@torch.no_grad()
def trace(
    model: Any,
    text_or_ids: str | Sequence[int] | Tensor | Mapping[str, Any],
    *,
    answer: str | Sequence[int] | None = None,
    tokenizer: Any = None,
    out: str | Path | None = None,
    max_new_tokens: int = 0,
    pairs: bool = True,
    leave_one_out: bool = True,
    chat: bool = True,
    adapter_name: str = "default",
) -> Trace:
    """What the gates do with a text: weights, angles and norms at every site and token, and the effect on the output.

    Sites are written to disk as soon as they have run, so a long text on a big model does not fill memory.

    Args:
        model: a composed model.
        text_or_ids: a prompt, or token ids [T] or [1, T] that are taken as they are; or a model's inputs by name, such as
            ``{"pixel_values": …}``. Where no next token is predicted, `Trace.effect` says how far the output moves
            without each expert, as a share of its length, and options about answers do not matter.
        answer: what follows the prompt, as text or token ids (for encoder–decoders: what the decoder reads).
        tokenizer: the base's own; found by the base's name where it is needed and not given.
        out: a new or empty folder for the trace; None keeps it in a temporary one, as long as the result lives.
        max_new_tokens: without an answer, let the model write one of so many tokens at most.
        pairs: also relate all experts to each other, which takes every expert's output.
        leave_one_out: also read the text once without each expert; factors of `radargate.using` around the call stay.
        chat: render a prompt in the tokenizer's chat template, as in training; False takes prompt and answer as they are.
        adapter_name: of the composition.

    Raises:
        OptionError: a model without this composition at work, no tokens, or a folder that holds something else.
    """
    layers = radar_layers(model)
    if not layers:
        raise OptionError("this model holds no composition; make one with radargate.compose or radargate.load.")
    model.base_model.check_active(adapter_name)
    config = radar_config(model, adapter_name)
    folder, keep = _folder(out)
    was_training = model.training
    model.eval()
    try:
        base = config.base_model_name_or_path or ""
        inputs = inputs_of(model, text_or_ids, tokenizer, base)
        if inputs is not None:
            _write_inputs(model, inputs, folder, pairs, leave_one_out, adapter_name)
            return Trace(folder, keep)
        text = _Text.of(model, base, text_or_ids, answer, tokenizer, max_new_tokens, chat)
        with _watched(layers, adapter_name, folder, pairs) as sites:
            nll = text.nll(model)
        factors = current.get().experts or {}
        without = {}
        if leave_one_out:
            for name in config.experts:
                with using(model, {**factors, name: 0.0}):
                    without[name] = text.nll(model)
    finally:
        model.train(was_training)
    write_facts(
        folder,
        {
            **_about(config),
            "tokens": text.shown(text.ids),
            "ids": text.ids,
            "prompt_length": text.prompt_length,
            "sites": sites,
            "nll": nll,
            "without": without,
            "encoder_tokens": text.shown(text.encoder or []),
            "on_encoder": [
                layer.site
                for layer in layers
                if layer.two_stacks and reads_encoder(layer.site, True) and layer.site in sites
            ],
        },
    )
    return Trace(folder, keep)


def _about(config: RadarConfig) -> dict[str, Any]:
    return {
        "experts": list(config.experts),
        "gate": config.gate,
        "architecture": config.architecture,
        "gate_options": config.gate_options,
        "top_k": config.top_k,
        "base": config.base_model_name_or_path,
    }


def _write_inputs(
    model: Any, inputs: Inputs, folder: Path, pairs: bool, leave_one_out: bool, adapter_name: str
) -> None:
    """Read inputs of any kind, and write the trace."""
    config, factors, without = radar_config(model, adapter_name), current.get().experts or {}, {}
    with _watched(radar_layers(model), adapter_name, folder, pairs) as sites:
        output = inputs.output(model)
    for name in config.experts if leave_one_out else ():
        with using(model, {**factors, name: 0.0}):
            without[name] = moved(output, inputs.output(model))
    found = {"tokens": inputs.shown(), "ids": inputs.ids, "prompt_length": len(inputs.ids)}
    write_facts(folder, {**_about(config), **found, "sites": sites, "nll": [], "without": without})


@dataclasses.dataclass
class _Text:
    """Token ids of one text, and how a model reads them."""

    ids: list[int]
    prompt_length: int
    encoder: list[int] | None
    tokenizer: Any

    @classmethod
    def of(
        cls, model: Any, base: str, given: Any, answer: str | Sequence[int] | None, tokenizer: Any, new: int, chat: bool
    ) -> _Text:
        config = model.get_base_model().config
        seq2seq = bool(config.is_encoder_decoder)
        start = [config.decoder_start_token_id] if seq2seq else []
        if isinstance(given, str) or isinstance(answer, str) or new or seq2seq:
            tokenizer = tokenizer or load_tokenizer(base)
        if isinstance(answer, str):
            continuation = tokenizer.encode(answer, add_special_tokens=False)
        else:
            continuation = [] if answer is None else [int(token) for token in answer]
        if isinstance(given, str) and chat:
            pair = encode_row(given, answer if isinstance(answer, str) else "x", tokenizer, seq2seq)
            context = pair.context + pair.continuation[: pair.lead]
            continuation = pair.continuation[pair.lead :] if isinstance(answer, str) else continuation
        elif isinstance(given, str):
            context = tokenizer.encode(given)
        else:
            ids = torch.as_tensor(given)
            if ids.dim() > 1 and ids.shape[0] != 1:
                raise OptionError(f"found ids of shape {list(ids.shape)}, expected one text: [tokens] or [1, tokens].")
            context = ids.reshape(-1).tolist()
        if not context:
            raise OptionError("the text has no tokens; give a prompt or token ids.")
        Limits.of(model).check([*context, *continuation], "the text", tokenizer, 0 if seq2seq else new)
        if answer is None and new:
            device = device_of(model)
            read = torch.tensor([context], device=device)
            written = model.generate(
                input_ids=read,
                attention_mask=torch.ones_like(read),
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )[0].tolist()
            continuation = written[len(start) :] if seq2seq else written[len(context) :]
        if seq2seq:
            return cls(start + continuation, len(start), context, tokenizer)
        return cls(context + continuation, len(context), None, tokenizer)

    def nll(self, model: Any) -> list[float]:
        """−log p of every token after the first: T - 1 numbers."""
        device = device_of(model)
        ids = torch.tensor([self.ids], device=device)
        if self.encoder is None:
            with current.block(answers=torch.arange(len(self.ids))[None] >= self.prompt_length):
                logits = model(input_ids=ids, use_cache=False).logits
        else:
            logits = model(input_ids=torch.tensor([self.encoder], device=device), decoder_input_ids=ids).logits
        found = []
        for start in range(0, len(self.ids) - 1, 256):  # a chunk at a time: log-probabilities are as large as logits
            part = logits[0, start : min(start + 256, len(self.ids) - 1)].float().log_softmax(-1)
            found += (-part.gather(1, ids[0, start + 1 : start + 1 + part.shape[0], None])[:, 0]).tolist()
        return found

    def shown(self, ids: list[int]) -> list[str]:
        """The text of every token."""
        return [str(i) for i in ids] if self.tokenizer is None else token_texts(ids, self.tokenizer)


def _folder(out: str | Path | None) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
    if out is None:
        keep = tempfile.TemporaryDirectory(prefix="radargate-trace-")
        return Path(keep.name), keep
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError(f"{folder} is not empty, and a trace needs a folder of its own. Choose another, or empty it.")
    with writing("the trace", folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder, None


@contextlib.contextmanager
def _watched(layers: Sequence[RadarLayer], name: str, folder: Path, pairs: bool) -> Iterator[dict[str, list[str]]]:
    """Write every site down as it runs; gives site → experts there."""
    sites: dict[str, list[str]] = {}

    def look(layer: RadarLayer, args: tuple[Any, ...], output: Tensor) -> None:
        if name not in layer.radar_gate or layer.site in sites:
            return
        config, entry = layer.entries[name]
        experts = [config.experts[i] for i in entry["experts"]]
        write_site(folder, _look(layer, name, args[0], output, tuple(experts), pairs))
        sites[layer.site] = experts

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(look).remove)
            stack.enter_context(_all_codes(layer, name))
        yield sites


@contextlib.contextmanager
def _all_codes(layer: RadarLayer, name: str) -> Iterator[None]:
    """Every expert's codes are wanted here, which the merged route does without."""
    architecture = layer.architectures.get(name)
    if not isinstance(architecture, MoLE):
        yield
        return
    before, architecture.options = architecture.options, dataclasses.replace(architecture.options, route="direct")
    try:
        yield
    finally:
        architecture.options = before


def _look(layer: RadarLayer, name: str, x: Tensor, output: Tensor, experts: tuple[str, ...], pairs: bool) -> SiteTrace:
    call, gate, silent = layer.call(x, name), layer.gate(name), layer.silent(name)
    if silent:  # the forward leaves such a site out, and a gate has no weights to share out
        call = dataclasses.replace(call, multipliers=None, all_multipliers=None)
    gated = gate(call)
    n, tokens = len(experts), x[..., 0].numel()
    weights = gated.weights.reshape(tokens, -1)
    indices = gated.indices
    chosen = torch.arange(n).expand(tokens, n) if indices is None else indices.reshape(tokens, -1)
    norms = ops.expert_norms(gated.codes.h, gated.codes.B, gated.codes.ranks).reshape(tokens, n)
    own = norms.gather(1, chosen.to(norms.device))
    if silent:
        weights, update = torch.zeros_like(weights), weights.new_zeros(output.shape)
    else:
        update = layer.update(x, name)
    angles, lengths = torch.zeros_like(weights), torch.zeros_like(weights)
    if gated.turn is not None and not silent:
        codes = gated.turn.codes.reshape(tokens, -1, gated.turn.codes.shape[-1])
        for slot in range(weights.shape[1]):
            code = codes[:, slot if codes.shape[1] > 1 else 0]
            flat = None if indices is None else indices.reshape(tokens, -1)
            angles[:, slot] = angle(code, gated.turn.up, flat, slot, gated.turn.angle_norm).abs().mean(-1)
            lengths[:, slot] = code.norm(dim=-1)
    related = Pairs(n, update.shape[-1])
    if pairs:
        related.add(gate, call, gated)
    empty = (torch.zeros(0, 0), torch.zeros(0, 0))
    cosines, plane = (related.cosine(), related.plane()) if pairs else (empty, empty)
    plain = (output.to(update) - update).reshape(tokens, -1)
    return SiteTrace(
        layer.site,
        experts,
        chosen,
        weights,
        angles,
        lengths,
        norms,
        (weights * own).abs(),
        update.reshape(tokens, -1).norm(dim=-1),
        plain.norm(dim=-1),
        *cosines,
        *plane,
    )
