"""A base model by the files that vLLM loads: vLLM changes weights in memory, so that nothing could be compared there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from radargate.base_models.loading import fingerprint_of, resolve_base
from radargate.errors import BaseModelError, BundleError, first_line


class BaseFiles:
    """The tensors in a base's safetensors files, by name; each is read from the file when it is asked for.

    Args:
        base: a folder, or a Hub name whose files are here.

    Raises:
        BaseModelError: there are none, or one cannot be read.
    """

    def __init__(self, base: str) -> None:
        self.folder = folder_of(base)
        self.places: dict[str, Path] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            with _opened(path) as file:
                self.places.update(dict.fromkeys(file.keys(), path))

    def tensor(self, name: str) -> Tensor:
        """One tensor, mapped from its file."""
        with _opened(self.places[name]) as file:
            return file.get_tensor(name)

    def fingerprint(self, names: Iterable[str]) -> str | None:
        """What `radargate.base_models.loading.fingerprint` says of a model with these parameters; None where a file lacks one."""
        found = {name: self.found(name) for name in names}
        if not found or None in found.values():
            return None
        return fingerprint_of((name, self.tensor(place)) for name, place in found.items() if place is not None)

    def found(self, name: str) -> str | None:
        """The name in the files of a parameter: some files leave the model's own prefix out."""
        return next((n for n in (name, name.removeprefix("model."), f"model.{name}") if n in self.places), None)


def folder_of(base: str) -> Path:
    """The folder of a base whose files are here.

    Raises:
        BaseModelError: they are not.
    """
    place = Path(resolve_base(base))
    if place.is_dir():
        return place
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(place), local_files_only=True))
    except Exception as error:  # the library raises many kinds; all mean that no file is here
        raise BaseModelError(
            f"the files of base model {base!r} are not here ({type(error).__name__}). Download it first (hf download {base}), or give "
            "its folder."
        ) from error


def own_parameters(model: nn.Module) -> list[str]:
    """Names of a model's parameters, those left out that are another's own: a checkpoint may hold them or not."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    return [name for name, _ in model.named_parameters() if name not in tied]


def check_base(bundle: object, expected: str | None, model: nn.Module, base: str) -> None:
    """Raise `BundleError` where a base's files are not those that a bundle's gates were made for.

    Args:
        bundle: for the message.
        expected: fingerprint of the base in the bundle.
        model: the base's modules, without weights.
        base: its folder or Hub name.
    """
    if expected is None:
        return
    found = BaseFiles(base).fingerprint(own_parameters(model))
    if found is None:
        raise BundleError(
            f"{bundle} was made for a base model with fingerprint {expected[:16]}…, and the files of {base} hold other tensors than the "
            "plain model does (quantised, or renamed), so nobody can tell whether they are its. Use the base the bundle names, or allow it "
            "with `allow_other_base`."
        )
    if found != expected:
        raise BundleError(
            f"{bundle} was made for a base model with fingerprint {expected[:16]}…, {base} has {found[:16]}…: other weights. Use the "
            "base the bundle names, or allow it with `allow_other_base` and score it again."
        )


def hollow(model: nn.Module) -> nn.Module:
    """Give a model without data (on meta) parameters on the CPU that take no memory: one zero each, of the right shape."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                zero = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                module._parameters[name] = nn.Parameter(zero, requires_grad=False)
    return model


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"{path} cannot be read ({first_line(error)}). Download the base model again.") from error
