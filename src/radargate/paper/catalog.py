"""The paper's experiments and our own, one declarative description each."""

from __future__ import annotations

from dataclasses import replace

from radargate.paper.design import Experiment
from radargate.registry import Registry

_HERE = "radargate.paper.catalog"
EXPERIMENTS = Registry(
    "experiment",
    {
        "ablation": f"{_HERE}:ABLATION",
        "fitting": f"{_HERE}:FITTING",
        "modules": f"{_HERE}:MODULES",
        "model-size": f"{_HERE}:MODEL_SIZE",
        "samples": f"{_HERE}:SAMPLES",
        "convergence": f"{_HERE}:CONVERGENCE",
        "generalization": f"{_HERE}:GENERALIZATION",
        "angles": f"{_HERE}:ANGLES",
        "hull": f"{_HERE}:HULL",
        "forms": f"{_HERE}:FORMS",
        "recipes": f"{_HERE}:RECIPES",
        "learnable": f"{_HERE}:LEARNABLE",
        "routed": f"{_HERE}:ROUTED",
        "routed-cut": f"{_HERE}:ROUTED_CUT",
        "routed-paraphrased": f"{_HERE}:ROUTED_PARAPHRASED",
        "crowded": f"{_HERE}:CROWDED",
    },
)
_WEIGHING = ("stretch", "radar", "nexus", "tutel")  # the paper's gates that weigh experts
# what a trained router must beat: the expert whose example prompts are most like the text
_SELECTING = ("select", "select:by=centroid", "select:features=hidden")
_ROUTERS = tuple(
    f"{gate}:router={router}" for router in ("prompt,router_start=select", "text") for gate in ("stretch", "radar")
)
# their own bases in the paper (Sec. 5.3, App. F); three of them are encoder–decoders
PAPER_BASES = (
    "ai4bharat/IndicBART",
    "bigscience/mt0-base",
    "google/flan-t5-large",
    "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.2-3B",
)
# short tasks of several kinds that a 135M model learns: on validation rows their own experts beat the base
_LEARNABLE_TASKS = (
    "glue/sst2",
    "natural_instructions/task512_twitter_emotion_classification",
    "natural_instructions/task875_emotion_classification",
    "natural_instructions/task109_smsspamcollection_spamsmsdetection",
    "natural_instructions/task1157_bard_analogical_reasoning_rooms_for_containers",
)
_FIVE_TASKS = {"source": "natural_instructions", "tasks": 5}
# one grid on a CPU for two experiments: the second takes the first's cells over with --reuse
_GROWING_BANK = {"experts": (5, 15, 40), "steps": 60, "expert_steps": 25, "limit": 30}

ABLATION = Experiment(
    "ablation",
    "Do stretch and rotation together do what neither does alone, nor the same parameters spent otherwise?",
    "Figure 3",
    axis=None,
    layout="tasks",
    design={"gates": ("stretch", "rotation", "radar", "control")},
    presets={"cpu": {"rules": ("uniform", *_SELECTING)}, "gpu": {"rules": ("uniform", *_SELECTING)}},
)
FITTING = Experiment(
    "fitting",
    "Which gate fits the tasks it was trained on best, under each architecture and top-k?",
    "Tables 2 and 3",
    axis="top_k",
    layout="tasks",
    design={"gates": ("paper",)},
    presets={
        "cpu": {"gates": _WEIGHING},
        "gpu": {"top_k": (1, 2, 4)},
        "paper": {"top_k": (1, 2, 3, 4, 5, 6)},
    },
)
MODULES = Experiment(
    "modules",
    "What happens to a gate on the same tasks when its bank grows by experts of other tasks?",
    "Figures 1b, 4 and 7 to 9",
    axis="experts",
    layout="axis",
    design={**_FIVE_TASKS, "gates": _WEIGHING, "experts": (5, 10, 20, 40)},
    presets={
        "cpu": {**_GROWING_BANK, "gates": (*_WEIGHING, "signed", "lora")},
        "paper": {"experts": (5, 10, 15, 20, 25, 30, 35, 40)},
    },
)
MODEL_SIZE = Experiment(
    "model-size",
    "Does the order of the gates depend on the base model's size or kind?",
    "Figures 4 and 10 to 12",
    axis="bases",
    layout="axis",
    design={"gates": _WEIGHING, "tasks": 5},
    presets={
        "cpu": {"bases": ("smollm2-135m", "gemma3-270m"), "named": _LEARNABLE_TASKS, "steps": 60},
        "gpu": {"bases": ("bigscience/mt0-base", "google/flan-t5-large", "meta-llama/Llama-3.2-1B")},
        "paper": {"bases": PAPER_BASES, "tasks": None},
    },
)
SAMPLES = Experiment(
    "samples",
    "How many training rows a task does a gate need?",
    "Figures 14 to 16",
    axis="rows",
    layout="axis",
    design={"gates": _WEIGHING, "rows": (50, 100, 200, None)},
    presets={"cpu": {"tasks": 5}},
)
CONVERGENCE = Experiment(
    "convergence",
    "How fast does the training loss fall with few and with many experts?",
    "Figures 6a and 13",
    axis="experts",
    layout="curves",
    design={**_FIVE_TASKS, "gates": _WEIGHING, "experts": (5, 15, 40), "limit": 20},
    presets={"cpu": _GROWING_BANK},
)
GENERALIZATION = Experiment(
    "generalization",
    "What is left of a composition on tasks that it never saw?",
    "Tables 1 and 4 to 7, Figure 1a",
    axis=None,
    layout="sources",
    design={"gates": ("paper",), "rules": ("uniform", "lorahub", "arrow"), "benchmarks": "paper"},
    presets={
        "cpu": {
            "gates": _WEIGHING,
            "rules": ("uniform", "arrow"),
            "tasks": 5,
            "test_tasks": 2,
            "limit": 10,
            "max_new_tokens": 32,
        },
        "gpu": {"limit": 50},
    },
)
ANGLES = Experiment(
    "angles",
    "How does training rotate the outputs of related and of unrelated experts towards or away from each other?",
    "Figures 5 and 6b",
    axis=None,
    layout="angles",
    probe="radargate.paper.angles:measure_angles",
    design={"gates": ("rotation", "radar")},
)
HULL = Experiment(
    "hull",
    "Does the update a task needs lie inside the convex hull of the other experts' outputs, and who reaches it?",
    "Section 3",
    axis="leave_one_out",
    layout="hull",
    probe="radargate.paper.hull:measure_hull",
    design={"gates": ("stretch", "radar"), "leave_one_out": True},
    presets={"cpu": {"tasks": 5}},
)
FORMS = Experiment(
    "forms",
    "Which form of the rotation, if any, is worth its parameters? On validation rows.",
    "",
    axis=None,
    layout="tasks",
    design={
        "split": "validation",
        "gates": (
            "stretch",
            "radar",
            "radar:angle_norm=none",
            "radar:rotation_sharing=expert",
            "radar:rotation_input=input,rotation_sharing=expert,rotation_rank=4",
            "radar:rotation_rank=32",
            "signed-radar",
            "signed",
            "vector",
            "lora",
            "mlp",
        ),
    },
    presets={"cpu": {"tasks": 5}},
)
_SOFTMAX_RATES = ("", ":lr=0.002", ":lr=0.02")
_TURNS = (":rotation_lr=0.02", ":rotation_lr=0.05")
RECIPES = Experiment(
    "recipes",
    "How does each gate want to be trained: at which learning rates, with weights of free length? On validation rows.",
    "",
    axis=None,
    layout="tasks",
    design={
        "named": _LEARNABLE_TASKS,
        "split": "validation",
        "seeds": 1,
        "limit": 40,
        "gates": (
            *(f"stretch{rate}" for rate in (*_SOFTMAX_RATES, ":lr=0.05")),
            *(f"radar{rates}" for rates in ("", ":rotation_lr=0.001", *_TURNS, ":lr=0.002,rotation_lr=0.02")),
            *(f"signed-radar{rates}" for rates in ("", *_TURNS, ":lr=0.002,rotation_lr=0.02")),
            # weights that need not sum to 1, with and without a turn
            "radar:length=expert",
            "stretch:length=expert",
            *(f"{gate}{rate}" for gate in ("nexus", "tutel") for rate in _SOFTMAX_RATES),
            "signed",
            "signed:lr=0.002",
            "lora",
            "lora:rotation_lr=0.02",
            "rotation",
            "rotation:rotation_lr=0.02",
        ),
    },
    presets={"cpu": {"steps": 60}},
)
LEARNABLE = Experiment(
    "learnable",
    "On other tasks, whose own experts beat the base: which gate composes best, each at its own best learning rates?",
    "Tables 2 and 3",
    axis=None,
    layout="tasks",
    design={
        "named": _LEARNABLE_TASKS,
        "limit": 50,
        "gates": ("paper", "signed", "lora"),
        "rates": ("nexus:lr=0.002", "rotation:rotation_lr=0.02"),
    },
    presets={"cpu": {"steps": 60}},
)
ROUTED = Experiment(
    "routed",
    "What does one decision for the whole model, from the text so far, add to the gates of single sites?",
    "",
    axis=None,
    layout="tasks",
    design={
        "named": _LEARNABLE_TASKS,
        "limit": 50,
        "gates": ("stretch", "radar", *_ROUTERS),
        "rules": ("uniform", *_SELECTING),
    },
    presets={"cpu": {"steps": 60, "expert_steps": 120}},
)
ROUTED_CUT = replace(
    ROUTED,
    name="routed-cut",
    question="What does the router add where no prompt says its task: with the text cut out that all prompts of a task share?",
    design={**ROUTED.design, "prompts": "cut"},
)
ROUTED_PARAPHRASED = replace(
    ROUTED_CUT,
    name="routed-paraphrased",
    question="What does the router add where each task is put in ten ways, five of them for test rows only?",
    design={**ROUTED_CUT.design, "prompts": "paraphrased"},
)
CROWDED = Experiment(
    "crowded",
    "On tasks whose own experts beat the base: what happens when the bank grows by experts of other tasks?",
    "Figures 1b, 4 and 7 to 9",
    axis="experts",
    layout="axis",
    design={
        "named": _LEARNABLE_TASKS,
        "tasks": len(_LEARNABLE_TASKS),
        "others": "natural_instructions",
        "experts": (5, 40),
        "limit": 50,
        "gates": (*_WEIGHING, "stretch:router=text", "radar:router=text"),
        "rules": _SELECTING,
        "rates": ("nexus:lr=0.002",),
    },
    presets={"cpu": {"steps": 60}},
)
