"""Bundles in memory: one base model under all of them, and one active at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from radargate.base_models.limits import Limits
from radargate.base_models.loading import base_name, load_tokenizer, straighten_head
from radargate.composition.composing import load, radar_config, read_config
from radargate.composition.config import RadarConfig
from radargate.composition.layer import check_factors
from radargate.data.prompts import encode_to_answer, render_messages
from radargate.errors import BundleError, OptionError
from radargate.explorer.files import Trace
from radargate.explorer.trace import trace
from radargate.gates.call_state import current

Mask = tuple[tuple[str, float], ...]


class LoadedBundles:
    """Bundles over one base model that is loaded once.

    Args:
        bundles: name → folder or Hub id, all made for the same base.
        base: the base to put under them, or its name, if not the one the first names.
        dtype: of the base.
        device: where to run.
        tokenizer: of the base; None takes the one it ships.

    Raises:
        BundleError: a bundle belongs to another base than the first.
        RadarGateError: a model cannot answer token by token, or is an encoder–decoder.
    """

    def __init__(
        self,
        bundles: Mapping[str, str],
        *,
        base: str | PreTrainedModel | None = None,
        dtype: str | None = None,
        device: str | None = None,
        tokenizer: Any = None,
    ) -> None:
        self.names = list(bundles)
        self._models: dict[str, Any] = {}
        self._adapters = {name: f"bundle{i}" for i, name in enumerate(bundles)}
        for name, source in bundles.items():
            under: Any = base
            if self._models:
                under = next(iter(self._models.values())).get_base_model()
                _check_same_base(name, source, self.config(self.names[0]))
            self._models[name] = load(under, source, adapter_name=self._adapters[name], dtype=dtype, device=device)
            self._active = name
        inner = next(iter(self._models.values())).get_base_model()
        if inner.config.is_encoder_decoder or getattr(inner, "_is_stateful", False):
            raise OptionError(
                f"{base_name(inner)} is a {type(inner).__name__}; serve and chat need a causal model with a key–value "
                "cache. Use radargate generate for this one."
            )
        straighten_head(inner)
        self.base, self.tokenizer = inner.eval(), tokenizer or load_tokenizer(base or base_name(inner))
        self.limits = Limits.of(inner)
        for name in self.names:
            self.activate(name).base_model.check_decodes()

    def config(self, name: str) -> RadarConfig:
        """The configuration of a bundle."""
        return radar_config(self._models[name], self._adapters[name])

    def activate(self, name: str) -> Any:
        """The composed model of a bundle, with its gates at work and no other's."""
        model = self._models[name]
        if name != self._active:
            model.set_adapter(self._adapters[name], inference_mode=True)
            self._active = name
        return model

    def trace(self, name: str, mask: Mask, ids: list[int], **options: Any) -> Trace:
        """What the gates of a bundle do with token ids, see `radargate.trace`; for the thread that owns the model."""
        model, adapter = self.activate(name), self._adapters[name]
        with masked(mask):
            return trace(model, ids, tokenizer=self.tokenizer, adapter_name=adapter, **options)

    @property
    def context(self) -> int | None:
        """How many tokens the base model can read, where it says so."""
        return self.limits.positions

    def mask(self, name: str, factors: Mapping[str, float]) -> Mask:
        """Expert factors of a request, checked; those of 1 change nothing and are left out.

        Raises:
            OptionError: an unknown expert (the nearest are named), or a factor that is no number from 0 to 1,000,000.
        """
        checked = check_factors(factors, list(self.config(name).experts))
        return tuple(sorted((expert, factor) for expert, factor in checked.items() if factor != 1))

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the next answer starts.

        Raises:
            DataError: the tokenizer's chat template refuses it.
        """
        return self._known(encode_to_answer(render_messages(messages, self.tokenizer), self.tokenizer))

    def text_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt that is taken as it is."""
        if getattr(self.tokenizer, "chat_template", None):
            return self._known(self.tokenizer.encode(prompt))
        return self._known(encode_to_answer(prompt, self.tokenizer))

    def _known(self, ids: list[int]) -> list[int]:
        """Raise `DataError` where the base has no embedding of a token; its length is the request's to check."""
        Limits(self.limits.tokens, None).check(ids, "the prompt", self.tokenizer)
        return ids


@contextmanager
def masked(mask: Mask) -> Iterator[None]:
    """Expert factors for the calls inside, checked before by `LoadedBundles.mask`; `radargate.using` would check each call."""
    with current.block(experts=dict(mask) if mask else None):
        yield


def _check_same_base(name: str, source: str, first: RadarConfig) -> None:
    """Raise `BundleError` where another base was meant, before anything is loaded; loading compares it with the weights."""
    if not Path(source).is_dir():
        return
    config = read_config(Path(source))
    found = config.base_fingerprint
    if found is not None and first.base_fingerprint is not None and found != first.base_fingerprint:
        raise BundleError(
            f"{name} was made for base {config.base_model_name_or_path} with fingerprint {found[:16]}…, the "
            f"first bundle for {first.base_model_name_or_path} with {first.base_fingerprint[:16]}…. One server holds one "
            "base: serve them apart."
        )
