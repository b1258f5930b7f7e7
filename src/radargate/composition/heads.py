"""The head that a composition keeps: PEFT's ``modules_to_save``, frozen, and only where the experts brought one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from radargate.errors import BundleError, shown
from radargate.experts.files import TensorInfo
from radargate.experts.heads import Head, labels_of
from radargate.experts.names import PREFIX

NONE = "(none)"  # PEFT's classes of these tasks cannot do without a name
_NEED_A_NAME = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


class Kept(list[str]):
    """Names of the modules that a composition replaces; PEFT cannot add those of its own.

    Its classes for classifiers put ``classifier`` and ``score`` behind the names in any config, and would then copy the base's
    own head, or trip over experts that adapt layers inside of it.
    """

    def extend(self, names: Iterable[str]) -> None:
        """Ignores PEFT's names."""


def kept_modules(named: Iterable[str] | None, task: str | None) -> Kept:
    """The names as a config of that task type holds them."""
    names = [name for name in named or () if name != NONE]
    return Kept(names or ([NONE] if task in _NEED_A_NAME else []))


def fill_head(model: nn.Module, head: Head | None, adapter_name: str) -> None:
    """Copy a head into the modules that PEFT made for it."""
    for name, wrapper in _wrappers(model):
        if head is None or adapter_name not in wrapper.modules_to_save:
            continue
        module = name.removeprefix(PREFIX)
        own = {n.removeprefix(f"{module}."): t for n, t in head.tensors.items() if n.startswith(f"{module}.")}
        wrapper.modules_to_save[adapter_name].load_state_dict(own)


def kept_head(model: nn.Module, adapter_name: str) -> Head | None:
    """The head that a composition keeps, if it keeps one."""
    tensors, modules = {}, []
    for name, wrapper in _wrappers(model):
        if adapter_name in wrapper.modules_to_save:
            modules.append(name.removeprefix(PREFIX))
            own = wrapper.modules_to_save[adapter_name].state_dict()
            tensors.update({f"{modules[-1]}.{key}": value.detach().cpu() for key, value in own.items()})
    return Head("the composition", tuple(modules), tensors) if modules else None


def freeze_heads(model: nn.Module) -> None:
    """Only gates are trained: PEFT sets what it saves to be trainable."""
    for _, wrapper in _wrappers(model):
        wrapper.requires_grad_(False)


def restore_heads(base: nn.Module) -> None:
    """Put a base's own modules back in the place of those of compositions or adapters."""
    for name, wrapper in list(_wrappers(base)):
        parent, _, child = name.rpartition(".")
        setattr(base.get_submodule(parent), child, wrapper.original_module)


def bundle_labels(folder: Any, named: Iterable[str], header: Mapping[str, TensorInfo]) -> int | None:
    """How many labels the head of a bundle tells apart, where it keeps one.

    Raises:
        BundleError: its weights file lacks the head that its config names.
    """
    shapes: list[tuple[int, ...]] = []
    for module in (name for name in named if name != NONE):
        found = [info.shape for name, info in header.items() if name.startswith(f"{PREFIX}{module}.")]
        shapes += found
        if not found:
            raise BundleError(
                f"{folder} keeps a trained head {shown(module)}, and its weights file has no tensor of it. Download the bundle "
                "again."
            )
    return labels_of(shapes)


def _wrappers(model: nn.Module) -> Iterator[tuple[str, ModulesToSaveWrapper]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper))
