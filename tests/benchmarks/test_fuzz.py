"""A hundred random inputs, and three hundred for --all, for every reader of strangers' bytes; benchmarks/robustness/fuzz.py tries as many as one likes."""

from __future__ import annotations

import json

import pytest

import fuzz
import sweeps
from fuzz_targets import TARGETS
from radargate.errors import RadarGateError

INPUTS = 300 if sweeps.everything else 100


@pytest.mark.parametrize("name", TARGETS)
def test_random_inputs_are_taken_or_refused_and_nothing_else(name, tmp_path):
    result = fuzz.fuzz(TARGETS[name], tmp_path, INPUTS, number=1)
    assert result.inputs == INPUTS
    assert not result.escapes, json.dumps(result.escapes, indent=1)
    assert sum(result.refused.values()) > INPUTS // 20, "inputs are too far from anything that is refused"
    assert result.taken + sum(result.refused.values()) == INPUTS


def test_what_escapes_is_seen_and_counted(tmp_path):
    def prepare(folder):
        def read(value):
            if value == "b":
                raise RadarGateError("refused")
            if value == "c":
                raise KeyError("escaped")

        return read

    from hypothesis import strategies as st

    result = fuzz.fuzz(fuzz.Target(st.sampled_from("abc"), prepare), tmp_path, 50)
    assert result.taken and result.refused["RadarGateError"] and result.inputs == 50
    ((place, facts),) = result.escapes.items()
    assert (
        place.startswith("KeyError at test_fuzz.py")
        and facts["times"] + result.taken + sum(result.refused.values()) == 50
    )
