"""A bundle as vLLM's processes read it: checked as `radargate.load` checks it, and its layers without a base model under them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from radargate.base_models.loading import meta_base, resolve_base
from radargate.composition.bundle import HASHED, bundle_folder, read_lock
from radargate.composition.composing import load, radar_layers, read_config
from radargate.composition.config import RadarConfig
from radargate.composition.layer import RadarLayer
from radargate.errors import BundleError, OptionError, shown
from radargate.gates.router.hooks import embeddings
from radargate.gates.router.router import TextRouter
from radargate.io.places import place_of
from radargate.io.records import content_hash, file_hash
from radargate.vllm.base_files import BaseFiles, check_base, hollow
from radargate.vllm.refusals import check_bundle

NAME = "default"
OPTIONS = ("bundle", "adapters", "allow_other_base", "sha256")


@dataclass
class Bundle:
    """A bundle that was checked with its base's files; nothing of either is in memory yet.

    Attributes:
        folder: of the bundle.
        config: its configuration.
        base: folder or Hub name of its base.
        digest: hash of its files.
        plain: the base's modules, without weights.
        adapters: where the experts of a bundle with gates only are.
    """

    folder: Path
    config: RadarConfig
    base: str
    digest: str
    plain: nn.Module
    adapters: Mapping[str, str] | None = field(default=None)

    def layers(self) -> dict[str, RadarLayer]:
        """Site → its layer with experts and gate, over nothing.

        Raises:
            BundleError: tensors are missing, left over or of another shape, or experts are not those of the gates.
        """
        composed = load(hollow(self.plain), self.folder, adapters=self.adapters, allow_other_base=True)
        found = {layer.site: layer.eval() for layer in radar_layers(composed)}
        for layer in found.values():
            layer.base_layer = nn.Identity()
        return found

    def embedding(self) -> Any:
        """The base's token embeddings [vocabulary, d], from its file."""
        wanted = embeddings(self.plain)
        name = next(f"{name}.weight" for name, module in self.plain.named_modules() if module is wanted)
        files = BaseFiles(self.base)
        place = files.found(name)
        if place is None:
            raise BundleError(
                f"the files of {self.base} have no {name}, by which a router knows texts. Use another base, or a gate without a router."
            )
        return files.tensor(place)


def open_bundle(options: Mapping[str, Any], base: str | None = None) -> Bundle:
    """Check a bundle and the files of its base.

    Args:
        options: ``bundle``, its folder or Hub id; ``adapters``, expert → folder, for a bundle with gates only; ``allow_other_base``;
            ``sha256``, what `Bundle.digest` must be.
        base: the base that vLLM was given; None takes the one that the bundle names.

    Raises:
        RadarGateError: the bundle, or what it asks for, cannot be served here; the message says why.
    """
    unknown = [name for name in options if name not in OPTIONS]
    if unknown or not isinstance(options.get("bundle"), str):
        raise OptionError(
            f"the load format radargate got {shown(dict(options))}, expected a table with the bundle's folder, such as "
            '{"bundle": "my-bundle"}' + (f"; it does not know {unknown[0]!r}." if unknown else ".")
        )
    name = options["bundle"]
    folder = bundle_folder(name)
    lock, config = read_lock(folder), read_config(folder)
    digest = content_hash({file: file_hash(folder / file) for file in HASHED if (folder / file).is_file()})
    if options.get("sha256", digest) != digest:
        raise BundleError(f"{name} was changed while vLLM started. Start again.")
    check_bundle(config)
    known = lock.get("base", {})
    base = base or place_of(known.get("name"), known.get("fingerprint")) or config.base_model_name_or_path
    if not base:
        raise BundleError(f"{name} names no base model; give one.")
    plain, base = meta_base(base), resolve_base(base)
    if getattr(plain.config, "is_encoder_decoder", False):
        raise OptionError(
            f"{type(plain).__name__} has an encoder and a decoder, which the plug-in does not serve. Use radargate generate."
        )
    if not options.get("allow_other_base"):
        check_base(name, config.base_fingerprint, plain, base)
    return Bundle(folder, config, base, digest, plain, options.get("adapters"))


def router_of(layers: Mapping[str, RadarLayer]) -> TextRouter | None:
    """The router that a composition's sites share."""
    return next((layer.routers[NAME] for layer in layers.values() if NAME in layer.routers), None)
