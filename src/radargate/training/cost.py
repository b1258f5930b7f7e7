"""What training costs, measured once: constants that every forecast of time shares."""

from __future__ import annotations

from radargate.composition.config import gate_class
from radargate.gates.rotation import RotationOptions

# seconds for a token and a million parameters. CPU: 100 expert steps of 8 rows of smollm2-135m took 150 to 430 s on two
# cores (benchmarks/results/three_seeds); CUDA: 40 % of one H100's bfloat16 peak would be 1e-8, small batches get a tenth
STEP = {"cpu": 2.6e-5, "cuda": 1e-7}
# a LoRA's step takes 4 operations a parameter and token: forward, and backward to the activations
OPERATIONS = 4e6
# a gate's step beside a LoRA's: a part for the gate itself, one for every expert while training is dense
GATE, EXPERT, ROTATION = 1.3, 0.05, 1.2
# work that a gate adds under an architecture beside independent experts
ARCHITECTURES = {"mole": 1.0, "hydra": 1.0, "omoe": 1.6}
SEARCH_STEPS = 15  # gradient steps that a search of 40 evaluations on 5 rows is about as long as
# scoring
FORWARD = 0.5  # of a training step
DECODED = 40.0  # tokens of reading that one generated token of a row costs, batched
OPENING = 8.0  # seconds to compose and look at a gate, for 135M parameters


def token_seconds(device: str) -> float:
    """Seconds for a token and a million parameters of the base in a LoRA's training step."""
    return STEP["cpu" if device == "cpu" else "cuda"]


def operations_seconds(operations: float, device: str) -> float:
    """Seconds for so many floating-point operations of a training step."""
    return operations * token_seconds(device) / OPERATIONS


def architecture_factor(architecture: str | None) -> float:
    """A step under an architecture, beside one with independent experts."""
    return ARCHITECTURES.get(architecture or "mole", 1.0)


def rotates(gate: str) -> bool:
    """Whether a gate rotates outputs, which takes longer."""
    return issubclass(gate_class(gate).Options, RotationOptions)


def training_steps(gate: str, steps: int, experts: int) -> int:
    """Optimizer steps in all: as many for each expert where each is trained alone."""
    return steps * experts if gate_class(gate).trains_alone else steps


def gate_factor(experts: float, architecture: str | None, rotating: bool) -> float:
    """A step of a gate that mixes so many experts, beside a LoRA's step."""
    return (GATE + EXPERT * experts) * architecture_factor(architecture) * (ROTATION if rotating else 1.0)
