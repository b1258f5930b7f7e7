"""The operations on tensors: ``codes → rotation_codes → mix``, and `radar`, which does all three. Imports errors and io."""

from radargate.ops.backend import BACKENDS, choose_backend, compute_dtype
from radargate.ops.choices import ANGLE_NORMS, GATE_INPUTS, NORMS, REFERENCES, ROTATION_INPUTS, ROUTES
from radargate.ops.cpp.sites import MOST_TOKENS, Recipe, site, site_applies
from radargate.ops.cpp.sites import few_plain as few_applies
from radargate.ops.decode import site as few_site
from radargate.ops.functional import radar
from radargate.ops.low_rank import angles, codes, input_codes, merged, mix, rotation_codes
from radargate.ops.merged import chosen_codes, merge, merged_is_cheaper, rounding
from radargate.ops.outputs import expert_logits, expert_norms, rotated_logits
from radargate.ops.selection import RENORMALIZE, dense_weights, select

__all__ = [
    "ANGLE_NORMS",
    "BACKENDS",
    "GATE_INPUTS",
    "MOST_TOKENS",
    "NORMS",
    "REFERENCES",
    "RENORMALIZE",
    "ROTATION_INPUTS",
    "ROUTES",
    "Recipe",
    "angles",
    "choose_backend",
    "chosen_codes",
    "codes",
    "compute_dtype",
    "dense_weights",
    "expert_logits",
    "expert_norms",
    "few_applies",
    "few_site",
    "input_codes",
    "merge",
    "merged",
    "merged_is_cheaper",
    "mix",
    "radar",
    "rotated_logits",
    "rotation_codes",
    "rounding",
    "select",
    "site",
    "site_applies",
]
