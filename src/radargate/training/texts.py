"""What a router of the whole model must know before it is trained: how texts look on average."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel

from radargate.composition.composing import radar_layers
from radargate.errors import OptionError
from radargate.gates.router.examples import text_sums
from radargate.gates.router.router import TextRouter

MOST_TEXTS = 2000  # evenly chosen; a mean needs no more


def routers_of(model: PeftModel) -> list[TextRouter]:
    """Routers of the compositions that are at work in a model."""
    found = {
        id(router): router
        for layer in radar_layers(model)
        for name, router in layer.routers.items()
        if name in layer.active_adapters
    }
    return list(found.values())


@torch.no_grad()
def describe_texts(model: PeftModel, texts: Sequence[Sequence[int]]) -> None:
    """Tell the router of a composition (``router="text"``) how the texts look that its gates will learn from.

    It reaches the active composition and those that know no texts yet, such as the reference that TRL keeps as a second one.

    Args:
        model: a composed model, before it is trained.
        texts: token ids of training prompts, as the model will read them.

    Raises:
        OptionError: the model has no router, or there are no two different texts.
    """
    routers = routers_of(model)
    texts = [ids for ids in texts if len(ids)]
    if not routers or not texts:
        raise OptionError(
            "describe_texts needs a model composed with router='text', and at least one text; found "
            f"{len(routers)} routers and {len(texts)} texts."
        )
    sums = text_sums(texts[:: -(-len(texts) // MOST_TEXTS)], model.get_base_model())
    others = {router for layer in radar_layers(model) for router in layer.routers.values() if not router.knows_texts}
    for router in {*routers, *others}:
        router.describe(sums)
