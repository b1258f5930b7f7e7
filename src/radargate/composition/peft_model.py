"""The PeftModel of bases that none of PEFT's classes for tasks fits: vision, speech, masked language models, modules."""

from __future__ import annotations

from typing import Any, cast

from peft import PeftModel


class AnyPeftModel(PeftModel):
    """`PeftModel`, whose calls pass through the tuner, as those of PEFT's classes for tasks do.

    PEFT's own calls the base model itself, which would leave out padding masks, the router's text and auxiliary losses.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's own forward."""
        with self._enable_peft_forward_hooks(*args, **kwargs):
            return cast(Any, self.base_model)(*args, **self._own(kwargs))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's own generation."""
        with self._enable_peft_forward_hooks(*args, **kwargs):
            return cast(Any, self.base_model).generate(*args, **self._own(kwargs))

    def _own(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in kwargs.items() if name not in self.special_peft_forward_args}


def pass_through_tuner(model: PeftModel) -> None:
    """Let a plain `PeftModel` call its tuner."""
    if type(model) is PeftModel:
        model.__class__ = AnyPeftModel
