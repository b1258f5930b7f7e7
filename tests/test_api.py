"""What ``import radargate`` offers, from training to export, without importing anything deeper."""

from __future__ import annotations

import sys

import pytest

import radargate


@pytest.fixture(scope="module")
def bundle(zoo, tasks, tmp_path_factory):
    """A bundle trained through the package's own name."""
    tiny, out = zoo["llama"], tmp_path_factory.mktemp("api") / "bundle"
    record = radargate.train(
        str(tiny["base"]),
        tiny["adapters"],
        tasks,
        out,
        steps=2,
        batch_size=4,
        max_length=64,
        router="text",
        device="cpu",
    )
    assert record["options"]["gate"] == "stretch" and record["options"]["steps"] == 2
    assert record["options"]["gate_options"] == {"router": "text", "router_start": "select"}
    return out


def test_a_model_and_its_bundle_score_and_answer_alike(bundle, tasks):
    model = radargate.load(None, bundle)
    scored = [radargate.evaluate(m, tasks, limit=3, max_new_tokens=2) for m in (model, str(bundle))]
    assert [r["task"] for r in scored[0]] == ["add", "even", "mean"]
    assert [r["metrics"]["nll"] for r in scored[0]] == [r["metrics"]["nll"] for r in scored[1]]
    answers = radargate.generate(model, ["1+1=", "is 3 even?"], max_new_tokens=3)
    assert answers == radargate.generate(str(bundle), ["1+1=", "is 3 even?"], max_new_tokens=3)
    assert radargate.generate(model, "1+1=", max_new_tokens=3) == answers[:1]


def test_unknown_options_are_refused_with_the_nearest(zoo, tasks, tmp_path):
    tiny = zoo["llama"]
    with pytest.raises(radargate.RadarGateError, match="temperature"):
        radargate.train(str(tiny["base"]), tiny["adapters"], tasks, tmp_path / "b", temperatur=2.0)


def test_comparison_and_export(zoo, tasks, tmp_path, bundle):
    tiny = zoo["llama"]
    adapters = {name: str(path) for name, path in tiny["adapters"].items()}
    records = radargate.compare(
        str(tiny["base"]),
        adapters,
        tasks,
        tmp_path / "c",
        gates=("stretch",),
        union_steps=2,
        limit=2,
        steps=2,
        max_length=64,
        device="cpu",
    )
    assert {"base", "stretch", "uniform"} <= {r["cell"]["system"] for r in records if r["suite"] == "cell"}
    uniform = radargate.compose(str(tiny["base"]), tiny["adapters"], gate="uniform", top_k=None)
    assert radargate.export(uniform, tmp_path / "exact") is None
    assert (tmp_path / "exact" / "adapter_model.safetensors").is_file()
    fit = radargate.export(str(bundle), tmp_path / "fit", rank=2, data=tasks, limit=2)
    assert fit is not None and fit["metrics"]["nll"]
    with pytest.raises(radargate.RadarGateError, match=r"differ from token to token|no single LoRA"):
        radargate.export(str(bundle), tmp_path / "none")


def test_names_that_the_readme_showed_before_still_work_and_say_where_they_are_now():
    with pytest.warns(DeprecationWarning, match=r"radargate\.base_models\.loading"):
        from radargate.base_models import load_tokenizer  # noqa: F401
    sys.modules.pop("radargate.shipped", None)
    with pytest.warns(DeprecationWarning, match=r"radargate\.shipped_experts"):
        from radargate.shipped import shipped_experts
    assert shipped_experts is radargate.shipped_experts
    from radargate.evaluation.scoring import generate  # noqa: F401
    from radargate.training.gates import GateTraining, train_gates  # noqa: F401
