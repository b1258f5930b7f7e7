"""Gates beside the paper's own: each equals its published equations; losses, capacity, joining experts, refusals."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer, TrainingArguments

import radargate
from radargate import ops
from radargate.architectures.base import Codes
from radargate.cli import main
from radargate.composition.composing import radar_layers
from radargate.errors import OptionError, RadarGateError
from radargate.experts.prototypes import prototypes
from radargate.gates import GATES
from radargate.gates.base import Call, GateSite, make_options
from radargate.gates.call_state import current
from radargate.gates.mole import MoLEGate
from radargate.gates.rotation import Turning
from radargate.gates.tutel import within_capacity
from radargate.ops import reference as literal

F64 = torch.float64
RANKS, D_IN, D = (2, 3, 1), 6, 8
NAMES = ("a", "b", "c")


def site(top_k=2):
    return GateSite(D_IN, D, RANKS, top_k, 7, NAMES, NAMES)


def make(name, top_k=2, **options):
    kind = GATES.get(name)
    gate = kind(site(top_k), make_options(kind, options)).double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter += torch.randn(parameter.shape, generator=g, dtype=F64) * 0.3
    return gate


def call(top_k=2, real=None, shape=(2, 5)):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, D_IN, generator=g, dtype=F64)
    A = [torch.randn(r, D_IN, generator=g, dtype=F64) for r in RANKS]
    B = [torch.randn(D, r, generator=g, dtype=F64) for r in RANKS]
    codes = Codes(x @ torch.cat(A).T, torch.cat([b.T for b in B]), RANKS)
    return Call(x, codes, top_k, real=real), literal.expert_outputs(x, A, B)


def test_moles_gate_is_a_softmax_over_concatenated_outputs_with_a_learned_temperature():
    seen, v = call(None)
    gate = make("mole", temperature=2.0)
    logits = literal.concat_logits(v, gate.softmax_theta) / gate.softmax_log_temperature.exp()
    torch.testing.assert_close(gate.weigh(seen)[0], logits.softmax(-1))
    assert gate.softmax_log_temperature.requires_grad


def test_a_sequence_level_gate_weighs_the_mean_over_real_tokens_and_only_where_all_are_seen(zoo, load_tiny, tmp_path):
    real = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    seen, v = call(None, real)
    gate = make("mole", pool="sequence")
    means = torch.stack([v[0, :3].mean(0), v[1].mean(0)])
    expected = (literal.concat_logits(means, gate.softmax_theta) / gate.softmax_log_temperature.exp()).softmax(-1)
    torch.testing.assert_close(gate.weigh(seen)[0], expected.unsqueeze(1).expand(2, 5, 3))
    for family in ("llama", "t5"):
        with pytest.raises(OptionError, match="a token may only see those before it"):
            radargate.compose(load_tiny(family), zoo[family]["adapters"], gate="mole", pool="sequence")
    from conftest import make_adapter

    encoder_only = {
        name: make_adapter(
            zoo["t5"]["base"],
            tmp_path / f"t5-{name}",
            seed,
            r=4,
            lora_alpha=8,
            target_modules=r".*encoder\.block\.\d+\.layer\.0\.SelfAttention\.(q|v)",
        )
        for seed, name in enumerate(("one", "two"))
    }
    model = radargate.compose(load_tiny("t5"), encoder_only, gate="mole", pool="sequence", top_k=None)
    ids = torch.randint(2, 250, (2, 6), generator=torch.Generator().manual_seed(0))
    assert model.generate(input_ids=ids, max_new_tokens=3).shape[0] == 2
    # padding changes nothing: the mean is over real tokens
    mask = torch.tensor([[1] * 6 + [0] * 3] * 2)
    padded = torch.cat([ids, torch.zeros(2, 3, dtype=torch.long)], 1)
    with torch.no_grad():
        short = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).logits
        long = model(input_ids=padded, attention_mask=mask, labels=ids).logits
    torch.testing.assert_close(short, long, rtol=1e-4, atol=1e-5)


def test_nexus_matches_tokens_with_projected_domain_vectors():
    seen, _ = call(None)
    gate = make("nexus", domains="random", width=5, hidden=4)
    d = gate.domain_vectors.double()
    torch.testing.assert_close(d.norm(dim=-1), torch.ones(3, dtype=F64), rtol=1e-6, atol=1e-6)
    W_g, W_u = gate.softmax_in[:4], gate.softmax_in[4:]
    e = torch.stack([gate.softmax_out @ (F.silu(W_g @ one) * (W_u @ one)) for one in d])
    torch.testing.assert_close(gate.weigh(seen)[0], (seen.x @ e.T / math.sqrt(D_IN)).softmax(-1))


@pytest.mark.parametrize("name", ["stretch", "radar", "lora"])
def test_lengths_multiply_the_kept_weights_from_1_on_and_no_compiled_recipe_forgets_them(name):
    seen, _ = call(2)
    gate, plain = make(name, length="expert"), make(name)
    assert plain.softmax_length is None
    fresh = GATES.get(name)(site(), make_options(GATES.get(name), {"length": "expert"}))
    assert not fresh.softmax_length.any() and gate.recipe() is None
    for top_k in (2, None):
        seen, _ = call(top_k)
        weights, indices = gate.weigh(seen)
        softmax, chosen = ops.select(gate.logits(seen), top_k)
        lengths = gate.softmax_length.exp()
        torch.testing.assert_close(weights, softmax * (lengths if chosen is None else lengths[chosen]))
        assert chosen is None or bool((indices == chosen).all())
    weights.square().sum().backward()
    assert bool(gate.softmax_length.grad.all())


def test_prototypes_are_top_right_singular_vectors_whatever_the_factors():
    g = torch.Generator().manual_seed(3)
    A, B = torch.randn(6, D_IN, generator=g), torch.randn(6, D, generator=g)
    for i, p in enumerate(prototypes(A, B, RANKS)):
        rows = slice(sum(RANKS[:i]), sum(RANKS[: i + 1]))
        right = torch.linalg.svd(B[rows].double().T @ A[rows].double())[2][0]
        assert abs(float(p @ right)) == pytest.approx(1.0, abs=1e-9)
    assert not bool(prototypes(A, torch.zeros_like(B), RANKS).any())


def test_a_new_expert_joins_a_trained_nexus_gate_and_the_rest_stays(zoo, load_tiny, tmp_path):
    adapters = zoo["llama"]["adapters"]
    two = {name: adapters[name] for name in ("math", "law")}
    model = radargate.compose(load_tiny(), two, gate="nexus", top_k=None)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.3 * torch.randn_like(p)
    x = torch.randn(4, 24)
    before = {layer.site: layer.gate("default") for layer in radar_layers(model)}
    weights = {name: gate.embeddings().detach() for name, gate in before.items() if gate.site.n == 2}
    larger = radargate.add_experts(model, {"code": adapters["code"]})
    for layer in radar_layers(larger):
        gate = layer.gate("default")
        if gate.site.n == 3:
            torch.testing.assert_close(gate.embeddings()[:2], weights[layer.site])
            assert torch.equal(gate.softmax_in, before[layer.site].softmax_in)
            share = layer.gated(x, "default").weights
            assert share.shape == (4, 3) and bool((share > 0).all())
            assert gate.embeddings()[2].norm() > 0
    larger.save_pretrained(str(tmp_path / "b"))
    again = radargate.load(load_tiny(), tmp_path / "b")
    ids = torch.randint(2, 250, (1, 7))
    with torch.no_grad():
        assert torch.equal(again.eval()(input_ids=ids).logits, larger.eval()(input_ids=ids).logits)
    stretch = radargate.compose(load_tiny(), two, gate="stretch")
    with pytest.raises(OptionError, match=r"cannot take another\. Gates that can: nexus"):
        radargate.add_experts(stretch, {"code": adapters["code"]})


def test_domain_vectors_come_from_texts_from_the_user_or_from_the_adapters(zoo, load_tiny, tasks, tmp_path):
    from radargate.base_models.loading import load_tokenizer

    base, adapters = load_tiny(), zoo["llama"]["adapters"]
    texts = {"math": ["1+1=", "2+3="], "law": ["is it legal?"], "code": ["def f():"]}
    vectors = radargate.domain_vectors(base, load_tokenizer(str(zoo["llama"]["base"])), texts)
    hidden = base.base_model(
        **load_tokenizer(str(zoo["llama"]["base"]))("is it legal?", return_tensors="pt")
    ).last_hidden_state
    torch.testing.assert_close(vectors["law"], hidden[0].mean(0).detach(), rtol=1e-4, atol=1e-5)
    model = radargate.compose(base, adapters, gate="nexus", domains=vectors)
    assert model.peft_config["default"].gate_options["domains"] == "given"
    model.save_pretrained(str(tmp_path / "given"))
    loaded = radargate.load(load_tiny(), tmp_path / "given")
    first, second = (radar_layers(m)[0].gate("default").domain_vectors for m in (model, loaded))
    assert torch.equal(first, second) and bool(first.any())
    with pytest.raises(OptionError, match="no domain vector for expert 'code'"):
        radargate.compose(load_tiny(), adapters, gate="nexus", domains={k: vectors[k] for k in ("math", "law")})
    with pytest.raises(OptionError, match="needs rows of every expert's domain"):
        radargate.compose(load_tiny(), adapters, gate="nexus", domains="hidden")
    named = [f"{task}={path}" for task, path in zip(("add", "even"), adapters.values(), strict=False)]
    assert (
        main(
            [
                "train",
                str(zoo["llama"]["base"]),
                *named,
                "--data",
                str(tasks),
                "--gate",
                "nexus",
                "--option",
                "domains=hidden",
                "--steps",
                "4",
                "--batch-size",
                "2",
                "--device",
                "cpu",
                "--out",
                str(tmp_path / "n"),
            ]
        )
        == 0
    )


def test_tutels_linear_and_cosine_gates_follow_its_equations():
    seen, _ = call(2)
    gate = make("tutel")
    scores = (seen.x @ gate.softmax_weight.T).softmax(-1)
    weights, indices = gate.weigh(seen)
    kept = scores.gather(-1, indices)
    torch.testing.assert_close(weights, kept / kept.sum(-1, keepdim=True))
    cosine = make("tutel", kind="cosine", projection=4)
    h = seen.x @ cosine.softmax_projection.T + cosine.softmax_bias
    near = F.cosine_similarity(h.unsqueeze(-2), cosine.softmax_similarity, dim=-1)
    torch.testing.assert_close(cosine.logits(seen.x), near * cosine.softmax_scale.exp())
    one, _ = call(1)
    torch.testing.assert_close(gate.weigh(one)[0], scores.amax(-1, keepdim=True))


def test_tutels_noise_is_for_training_only_and_a_dropped_choice_weighs_nothing():
    seen, _ = call(None)
    gate = make("tutel", noise=1.0)
    assert torch.equal(gate.eval().weigh(seen)[0], gate.weigh(seen)[0])
    assert not torch.equal(gate.train().weigh(seen)[0], gate.weigh(seen)[0])
    indices = torch.tensor([[0, 1], [0, 1], [0, 2], [1, 0]])
    weights = torch.full((4, 2), 0.5)
    # room for 2 · ⌊1 · ⌈4/3⌉⌋ = 4 choices: expert 0 gets tokens 0, 1, 2 first, then token 3's second choice
    assert within_capacity(indices, weights, 3, 1.0, False, None).tolist() == [[1, 1]] * 4
    # room for 2 · ⌊0.5 · 2⌋ = 2
    assert within_capacity(indices, weights, 3, 0.5, False, None).tolist() == [[1, 1], [1, 0], [0, 1], [1, 0]]
    strong = torch.tensor([[0.5, 0.5], [0.6, 0.4], [0.9, 0.1], [0.7, 0.3]])
    assert within_capacity(indices, strong, 3, 0.5, True, None)[:, 0].tolist() == [0, 1, 1, 1]
    real = torch.tensor([True, False, True, True])
    # three real tokens: room for 2 · ⌊1 · 1⌋ = 2, and the padding takes none of it
    assert within_capacity(indices, weights, 3, 1.0, False, real)[:, 0].tolist() == [1, 1, 1, 1]
    assert within_capacity(indices, weights, 3, 0.5, False, None)[:, 0].tolist() == [1, 1, 0, 1]


def test_a_gate_with_capacity_is_refused_for_generation_and_scoring(zoo, load_tiny):
    from radargate.evaluation.scoring import Scorer

    model = radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="tutel", capacity=1.0)
    with pytest.raises(RadarGateError, match="capacity=0"):
        model.generate(input_ids=torch.ones(1, 3, dtype=torch.long), max_new_tokens=2)
    with pytest.raises(RadarGateError, match="depend on the other tokens"):
        Scorer(model, None)


@pytest.mark.parametrize(
    "name,options,expected",
    [
        ("mole", {}, lambda p: -p.mean(0).log().sum()),
        ("tutel", {}, lambda p: 3 * (p.mean(0) * F.one_hot(p.argmax(-1), 3).double().mean(0)).sum()),
        ("nexus", {"domains": "random"}, lambda p: 3 * (p.mean(0) * F.one_hot(p.argmax(-1), 3).double().mean(0)).sum()),
        (
            "radar",
            {"auxiliary_weight": 0.01, "temperature": 0.5},
            lambda p: 3 * (p.mean(0) * F.one_hot(p.argmax(-1), 3).double().mean(0)).sum(),
        ),
    ],
)
def test_balance_losses_count_real_tokens_only(name, options, expected):
    real = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    seen, _ = call(None, real)
    gate = make(name, **options).train()
    terms = []
    with current.block(noted=terms):
        weights, _ = gate.weigh(seen)
    torch.testing.assert_close(type(gate).auxiliary(terms), expected(weights[real]))


def test_moles_balance_loss_averages_over_sites_first():
    gates, weights = [make("mole"), make("mole")], [torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.6, 0.3, 0.1])]
    found = MoLEGate.auxiliary(list(zip(gates, weights, strict=True)))
    torch.testing.assert_close(found, -(torch.stack(weights).mean(0)).log().sum())


class Tokens(torch.utils.data.Dataset):
    """Rows of unequal length."""

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.rows = [torch.randint(2, 250, (3 + 2 * (i % 3),), generator=g) for i in range(8)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def pad(rows):
    width = max(len(r) for r in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, r in enumerate(rows):
        ids[i, : len(r)], mask[i, : len(r)] = r, 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_auxiliary_losses_reach_the_loss_once_a_step_under_accumulation(zoo, load_tiny, tmp_path, checkpointing):
    def first_loss(micro, accumulate):
        model = radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="mole", auxiliary_weight=50.0, seed=1)
        arguments = TrainingArguments(
            str(tmp_path / f"{micro}{accumulate}"),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulate,
            max_steps=1,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            lr_scheduler_type="constant",
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
            remove_unused_columns=False,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=Tokens(), data_collator=pad)
        trainer._get_train_sampler = lambda *_: list(range(8))
        trainer.train()
        return trainer.state.log_history[0]["loss"]

    whole, parts = first_loss(8, 1), first_loss(2, 4)
    model = radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="mole", auxiliary_weight=50.0, seed=1).train()
    out = model(**pad(Tokens().rows))
    plain = radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="mole", auxiliary_weight=0.0, seed=1).train()
    task_loss = plain(**pad(Tokens().rows)).loss.item()
    assert float(out.loss) == pytest.approx(task_loss + float(out.aux_loss), rel=1e-5)
    assert float(out.aux_loss) > 100
    assert whole == pytest.approx(float(out.loss), rel=1e-3)
    # balance over a micro-batch is not balance over the batch, but it is counted once and not four times
    assert parts == pytest.approx(whole, rel=0.05)
    assert "aux_loss" not in model.eval()(**pad(Tokens().rows))


def test_our_own_trainer_sees_the_same_auxiliary_loss(zoo, tasks, tmp_path, capsys):
    losses = []
    for weight in (0.0, 10.0):
        out = tmp_path / str(weight)
        assert (
            main(
                [
                    "train",
                    str(zoo["llama"]["base"]),
                    *map(str, zoo["llama"]["adapters"].values()),
                    "--data",
                    str(tasks),
                    "--gate",
                    "tutel",
                    "--option",
                    f"auxiliary_weight={weight}",
                    "--steps",
                    "3",
                    "--batch-size",
                    "2",
                    "--device",
                    "cpu",
                    "--out",
                    str(out),
                    "--json",
                ]
            )
            == 0
        )
        import json

        losses.append(json.loads(capsys.readouterr().out)["metrics"]["curve"][0][1])
    # gshard's loss is 1 where experts are used alike
    assert losses[1] - losses[0] == pytest.approx(10.0, rel=0.5)


def test_controls_have_as_many_parameters_as_what_they_control_for():
    def count(name, n=9, d_in=576, d=576):
        kind = GATES.get(name)
        gate = kind(GateSite(d_in, d, (8,) * n, 2), make_options(kind, {}))
        return sum(p.numel() for p in gate.parameters())

    radar = count("radar")
    assert count("multiplicative") == radar
    assert count("mlp") == pytest.approx(radar, rel=0.05) and count("lora") == pytest.approx(radar, rel=0.05)
    assert count("vector") == count("stretch") + 576 and count("signed") == count("stretch") + 9


@pytest.mark.parametrize("top_k", [1, 2, None])
def test_the_multiplicative_control_is_a_factor_on_every_coordinate(top_k):
    seen, v = call(top_k)
    gate = make("multiplicative", 3 if top_k is None else top_k, rank=4)
    others = v.sum(-2, keepdim=True) - v
    code = literal.unit_rms(v) * literal.unit_rms(others) @ gate.rotation_down * D**-0.5
    factors = 1 + code @ gate.rotation_up
    weights, indices = gate.weigh(seen)
    dense = weights if indices is None else torch.zeros(*v.shape[:-1], dtype=F64).scatter(-1, indices, weights)
    expected = (dense.unsqueeze(-1) * v * factors).sum(-2)

    gated = gate(seen)
    found = ops.mix(seen.h, seen.B, seen.ranks, gated.weights, gated.indices) + gated.extra
    torch.testing.assert_close(found, expected)
    parameters = list(gate.parameters())
    sense = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3), dtype=F64)
    for a, b in zip(*(torch.autograd.grad((y * sense).sum(), parameters) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["lora", "vector", "multiplicative"])
def test_controls_that_turn_nothing_refuse_rotated_outputs_as_input(name):
    with pytest.raises(OptionError, match="needs a rotation"):
        make(name, gate_input="rotated")


def test_the_signed_control_keeps_sign_and_size_and_the_largest():
    seen, _ = call(2)
    gate = make("signed")
    raw = seen.x @ gate.softmax_theta.T + gate.softmax_bias
    weights, indices = gate.weigh(seen)
    torch.testing.assert_close(weights, raw.gather(-1, indices))
    dropped = raw.abs().sum(-1) - weights.abs().sum(-1)
    torch.testing.assert_close(dropped, raw.abs().min(-1).values)


@pytest.mark.parametrize(("name", "plain"), [("radar", "stretch"), ("signed-radar", "signed")])
@torch.no_grad()
def test_a_gate_that_stops_turning_is_the_same_gate_without_a_turn(zoo, load_tiny, name, plain):
    turning, still = (
        radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate=gate, top_k=2).eval() for gate in (name, plain)
    )
    torch.manual_seed(0)
    for parameter in turning.parameters():
        if parameter.requires_grad:
            parameter += 0.3 * torch.randn_like(parameter)
    trained = dict(turning.named_parameters())
    for key, parameter in still.named_parameters():
        parameter.copy_(trained[key])
    text = torch.arange(3, 40)[None]
    wanted = still(text).logits
    assert (turning(text).logits - wanted).abs().max() > 1e-3
    for module in turning.modules():
        if isinstance(module, Turning):
            module.stop_turning()
    torch.testing.assert_close(turning(text).logits, wanted)


@pytest.mark.parametrize("architecture", ["mole", "omoe"])
@pytest.mark.parametrize("name", GATES.names())
def test_every_tensor_of_every_gate_gets_a_finite_gradient(zoo, load_tiny, name, architecture):
    model = radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate=name, top_k=2, architecture=architecture)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn_like(p)
    ids = torch.randint(2, 250, (4, 9))
    model.train()(input_ids=ids, labels=ids).loss.backward()
    for key, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and bool(torch.isfinite(p.grad).all()) and bool(p.grad.any()), key


@pytest.mark.parametrize(
    "name,options,message",
    [
        ("mole", {"pool": "word"}, "pool is 'word'"),
        ("mole", {"temperature": 0}, "temperature is 0"),
        ("mole", {"auxiliary_weight": -1}, "auxiliary_weight is -1"),
        ("stretch", {"auxiliary_weight": -1}, "auxiliary_weight is -1"),
        ("nexus", {"domains": "wiki"}, "domains is 'wiki'"),
        ("tutel", {"kind": "square"}, "kind is 'square'"),
        ("tutel", {"noise": -1}, "noise is -1"),
        ("tutel", {"loss": "load_importance"}, "give noise above 0"),
        ("signed", {"init_std": -1}, "init_std is -1"),
        ("mlp", {"gate_input": "experts"}, "looks at the input only"),
        ("lora", {"rank": -1}, "rank is -1"),
    ],
)
def test_bad_options_are_named_before_anything_is_loaded(name, options, message):
    with pytest.raises(OptionError, match=message):
        radargate.compose("no-such-model", {"a": "x", "b": "y"}, gate=name, **options)


def test_constant_angles_are_the_same_for_every_token_and_turn_each_output_by_its_own():
    gate = make("radar", rotation_input="constant", rotation_sharing="expert")
    assert gate.rotation_down is None and gate.rotation_up.shape == (3, 1, D // 2) and gate.recipe() is None
    seen, v = call(None)
    turn = gate.turn(seen, *gate.weigh(seen))
    assert bool((turn.codes == 1).all())
    angles = (gate.rotation_up[:, 0]).expand(*v.shape[:-1], D // 2)
    weights = gate.weigh(seen)[0]
    expected = (weights[..., None] * literal.rotate(v, angles)).sum(-2)
    got = ops.mix(seen.h, seen.B, seen.ranks, weights, None, turn.codes, turn.up, angle_norm=turn.angle_norm)
    torch.testing.assert_close(got, expected)
