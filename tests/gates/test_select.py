"""Rule ``select``: which expert fits the text, from example prompts."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import radargate
from conftest import tiny_tokenizer
from radargate.base_models.loading import load_base
from radargate.data.rows import Row
from radargate.errors import OptionError
from radargate.evaluation.usage import expert_usage
from radargate.gates.call_state import current
from radargate.gates.router import running_text
from radargate.gates.router.examples import PENALTY, evenly, learn, text_sums
from radargate.training.gates import train_gates
from radargate.training.options import GateTraining

EXAMPLES = {
    "math": ["1+2=", "what is 3*4?"],
    "law": ["is it a crime?", "the court said"],
    "code": ["def f(x):", "import os"],
}


def ids(text: str) -> list[int]:
    return tiny_tokenizer()(text)["input_ids"]


@pytest.fixture
def select(zoo):
    def make(**options):
        tiny = zoo["llama"]
        options = {"examples": EXAMPLES, **options}
        return radargate.compose(str(tiny["base"]), tiny["adapters"], gate="select", **options).eval()

    return make


def literal_scores(model, text: list[int], by: str) -> torch.Tensor:
    """Scores after each token of a text, in float64 and with loops, from the definition."""
    table = model.get_base_model().get_input_embeddings().weight.detach().double()

    def unit(token: int) -> torch.Tensor:
        return table[token] / (table[token].square().mean() + 1e-12).sqrt()

    def content(tokens: list[int]) -> torch.Tensor:
        return sum((unit(t) for t in tokens), torch.zeros(table.shape[1], dtype=torch.float64))

    prompts = {name: [ids(t) for t in texts] for name, texts in EXAMPLES.items()}
    means = [sum(content(p) / len(p) for p in each) / len(each) for each in prompts.values()]
    mu = sum(means) / len(means)
    raw = [(content(p) - len(p) * mu) / (len(p) + 16) for each in prompts.values() for p in each]
    sigma = (sum(c.square().mean() for c in raw) / len(raw)).sqrt()
    grouped = torch.stack(raw).div(sigma).unflatten(0, (3, 2))
    if by == "centroid":
        directions = F.normalize(grouped.mean(1), dim=-1) * 10 / table.shape[1] ** 0.5
    else:
        directions = learn([g.float() for g in grouped], by).double()
    seen = [(content(text[: t + 1]) - (t + 1) * mu) / (t + 17) / sigma for t in range(len(text))]
    return torch.stack(seen) @ directions.T


@pytest.mark.parametrize("by", ["centroid", "classifier"])
def test_every_site_takes_the_expert_that_the_definition_names_at_each_token(select, by):
    model, text = select(by=by, scope="text"), ids("what is law? import 1+2")
    scores = literal_scores(model, text, by)
    trace = radargate.trace(model, text)
    for site in trace.sites():
        kept = [site.experts.index(name) if name in site.experts else None for name in EXAMPLES]
        weights = site.dense_weights()
        for t, best in enumerate(scores.argmax(-1).tolist()):
            want = torch.zeros(len(site.experts))
            if kept[best] is not None:
                want[kept[best]] = 1
            assert torch.equal(weights[t].float(), want), (site, t)


def test_the_classifier_is_at_its_only_minimum():
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(n, 5, generator=generator).double() + i for i, n in enumerate((3, 7, 4))]
    found = learn(features, "classifier")
    x, weights = torch.cat(features), found.clone().requires_grad_()
    expert = torch.tensor([0] * 3 + [1] * 7 + [2] * 4)
    share = torch.tensor([1 / (3 * n) for n in (3, 7, 4)]).double()[expert]
    loss = (F.cross_entropy(x @ weights.T, expert, reduction="none") * share).sum()
    (loss + PENALTY / 2 * weights.square().sum()).backward()
    assert weights.grad.abs().max() < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"scope": "text"},
        {"scope": "text", "use": "weighted"},
        {"scope": "text", "by": "centroid", "use": "weighted", "top_k": 3},
    ],
)
def test_nothing_is_trained_and_a_saved_one_answers_alike_with_a_cache(select, tmp_path, options):
    model = select(**options)
    assert not any(p.requires_grad for p in model.parameters())
    model.save_pretrained(tmp_path / "bundle")
    again = radargate.load(None, tmp_path / "bundle").eval()
    asked = torch.tensor([ids("what is law? 1+2")])
    with torch.no_grad():
        assert torch.equal(model(asked).logits, again(asked).logits)
        words = {"max_new_tokens": 8, "do_sample": False}
        assert torch.equal(model.generate(asked, **words), again.generate(asked, use_cache=False, **words))


PROMPTS = ("what is 3*4?", "the court said so", "import os as x")


@pytest.mark.parametrize("by", ["centroid", "classifier"])
def test_a_prompt_is_answered_by_the_expert_that_fits_all_of_it_as_by_that_expert_alone(zoo, select, by, tmp_path):
    """Whole prompts in one batch with padding, cached; saved and loaded; the choice does not change while it answers."""
    tiny, tokenizer = zoo["llama"], tiny_tokenizer()
    model = select(by=by)
    model.save_pretrained(tmp_path / "bundle")
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    words = {"max_new_tokens": 12, "do_sample": False}
    found = [
        m.generate(**batch, **words)[:, batch["input_ids"].shape[1] :]
        for m in (model, radargate.load(None, tmp_path / "bundle"))
    ]
    assert torch.equal(*found)
    for row, prompt in enumerate(PROMPTS):
        best = list(EXAMPLES)[int(literal_scores(model, ids(prompt), by)[-1].argmax())]
        alone = radargate.compose(str(tiny["base"]), {best: tiny["adapters"][best]}, gate="uniform", top_k=1).eval()
        asked = torch.tensor([ids(prompt)])
        want = alone.generate(asked, **words)[0, asked.shape[1] :]
        assert torch.equal(found[0][row][: len(want)], want), (prompt, best)


def test_beams_returned_sequences_and_a_second_turn_keep_the_first_choice(select):
    model = select()
    asked = torch.tensor([ids("the court said so")])
    words = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    plain = model.generate(asked, num_beams=2, num_return_sequences=2, **words)
    best = list(EXAMPLES)[int(literal_scores(model, ids("the court said so"), "classifier")[-1].argmax())]
    others = {name: 0.0 for name in EXAMPLES if name != best}
    with radargate.using(model, others):
        assert torch.equal(
            plain.sequences, model.generate(asked, num_beams=2, num_return_sequences=2, **words).sequences
        )
    first = model.generate(asked, **words)
    with torch.no_grad():
        turn = torch.tensor([ids("import os")])
        cached = model(turn, past_key_values=first.past_key_values).logits
        again = model.generate(asked, **words).past_key_values
        with radargate.using(model, others):
            assert torch.equal(cached, model(turn, past_key_values=again).logits)


def test_an_expert_that_is_switched_off_leaves_its_place_to_the_next(select):
    model, asked = select(), torch.tensor([ids("is it a crime?")])
    with torch.no_grad():
        chosen = model(asked).logits
        with radargate.using(model, {"law": 0.0}):
            second = model(asked).logits
        with radargate.using(model, {"law": 0.0, "math": 0.0}):
            last = model(asked).logits
    for one, other in itertools.combinations((chosen, second, last), 2):
        assert not torch.equal(one, other)


def test_weighted_by_scores_is_the_softmax_over_the_kept(select):
    model, text = select(use="weighted", top_k=2, by="centroid", scope="text"), ids("is 1+2 a crime")
    scores = literal_scores(model, text, "centroid")
    kept = scores.topk(2, -1)
    want = torch.zeros_like(scores).scatter(-1, kept.indices, kept.values.softmax(-1))
    site = next(s for s in radargate.trace(model, text).sites() if len(s.experts) == 3)
    assert torch.allclose(site.dense_weights().double(), want, atol=1e-5)


@pytest.mark.parametrize(
    ("examples", "match"),
    [
        ({"math": ["a"], "law": ["b"]}, "no prompt for expert 'code'"),
        ({**EXAMPLES, "code": [""]}, "no prompt for expert 'code'"),
        ({**EXAMPLES, "low": ["x"]}, "names 'low', which is no expert"),
        ({**EXAMPLES, "code": EXAMPLES["law"]}, "'law' and 'code' have the same example prompts"),
        (["a", "b"], "expected a table"),
    ],
)
def test_examples_that_cannot_tell_experts_apart_are_one_line_before_a_model_is_loaded(zoo, examples, match):
    with pytest.raises(OptionError, match=match):
        radargate.compose("no/such/base", zoo["llama"]["adapters"], gate="select", examples=examples)


def test_without_examples_the_remedy_is_named(zoo):
    with pytest.raises(OptionError, match="Give each of these at least one prompt: math, law, code"):
        radargate.compose("no/such/base", zoo["llama"]["adapters"], gate="select")


@pytest.mark.parametrize("gate", ["stretch", "radar"])
def test_a_router_that_starts_from_examples_is_select_before_it_is_trained(zoo, same_sites, gate, tmp_path):
    """Where sites have all experts; radar has not turned yet either, as its P starts at 0."""
    adapters, asked = {name: same_sites[name] for name in EXAMPLES}, torch.tensor([ids("what is law? 1+2")])

    def made(**options):
        return radargate.compose(str(zoo["llama"]["base"]), adapters, examples=EXAMPLES, **options).eval()

    wanted = made(gate="select", scope="text", use="weighted", top_k=2)
    started = made(gate=gate, router="text", router_start="select")
    with torch.no_grad():
        torch.testing.assert_close(started(asked).logits, wanted(asked).logits)
    started.save_pretrained(tmp_path / "b")
    with torch.no_grad():
        assert torch.equal(radargate.load(None, tmp_path / "b")(asked).logits, started(asked).logits)


def test_an_expert_without_examples_may_be_in_a_router_and_not_in_select(zoo):
    tiny, some = zoo["llama"], {name: EXAMPLES[name] for name in ("math", "law")}
    words = {"gate": "stretch", "router": "text", "router_start": "select"}
    model = radargate.compose(str(tiny["base"]), tiny["adapters"], examples=some, **words)
    phi = next(p for name, p in model.named_parameters() if name.endswith("softmax_router"))
    assert [bool(row.any()) for row in phi] == [True, True, False]
    with pytest.raises(OptionError, match="Give each of these at least one prompt"):
        radargate.compose("no/base", tiny["adapters"], **words)
    with pytest.raises(OptionError, match="says how a router starts, and there is none"):
        radargate.compose("no/base", tiny["adapters"], gate="stretch", router_start="select", examples=some)


def test_training_takes_examples_from_rows_evenly_and_keeps_what_the_router_knows(zoo, tasks, tmp_path):
    tiny = zoo["llama"]
    adapters = dict(zip(("even", "add"), tiny["adapters"].values(), strict=False))
    options = GateTraining(
        gate="stretch",
        gate_options={"router": "text", "router_start": "select"},
        steps=2,
        batch_size=4,
        max_length=64,
        lr=1e-12,
    )
    train_gates(str(tiny["base"]), adapters, str(tasks), tmp_path / "t", options, device="cpu")
    train_gates(
        str(tiny["base"]),
        adapters,
        str(tasks),
        tmp_path / "s",
        GateTraining(gate="select", max_length=64),
        device="cpu",
    )
    trained, rule = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ts")
    key = next(name for name in trained if name.endswith("router.softmax_router"))
    for part in ("softmax_router", "text_mean", "text_spread"):
        name = key.replace("softmax_router", part)
        torch.testing.assert_close(trained[name], rule[name], atol=1e-6, rtol=1e-5)
    assert list(evenly(range(10), 4)) == [0, 3, 6, 9] and list(evenly(range(3), 200)) == [0, 1, 2]


def test_an_expert_joins_by_its_prompts_alone(zoo, tmp_path):
    tiny, some = zoo["llama"], ("math", "law")
    model = radargate.compose(
        str(tiny["base"]),
        {name: tiny["adapters"][name] for name in some},
        gate="select",
        by="centroid",
        examples={name: EXAMPLES[name] for name in some},
    ).eval()
    with pytest.raises(OptionError, match="has no prompt for expert 'code'"):
        radargate.add_experts(model, {"code": tiny["adapters"]["code"]})
    before = model.base_model._routers["default"]
    larger = radargate.add_experts(
        model, {"code": tiny["adapters"]["code"]}, examples={"code": EXAMPLES["code"]}
    ).eval()
    router = larger.base_model._routers["default"]
    assert torch.equal(router.softmax_router[:2], before.softmax_router) and torch.equal(
        router.text_mean, before.text_mean
    )
    sums = torch.stack([text_sums([ids(text)], larger.get_base_model())[0] for text in EXAMPLES["code"]])
    features = (sums[:, :-1] - sums[:, -1:] * before.text_mean) / ((sums[:, -1:] + 16) * before.text_spread)
    torch.testing.assert_close(router.softmax_router[2], F.normalize(features.mean(0), dim=-1))
    larger.save_pretrained(tmp_path / "b")
    again, words = radargate.load(None, tmp_path / "b"), {"max_new_tokens": 8, "do_sample": False}
    taken = set()
    for prompt in (*PROMPTS, *itertools.chain(*EXAMPLES.values())):
        asked = torch.tensor([ids(prompt)])
        best = list(EXAMPLES)[int(router(text_sums([ids(prompt)], larger.get_base_model())).argmax())]
        with radargate.using(larger, {name: 0.0 for name in EXAMPLES if name != best}):
            alone = larger.generate(asked, **words)
        assert torch.equal(larger.generate(asked, **words), alone) and torch.equal(
            again.generate(asked, **words), alone
        )
        taken.add(best)
    assert "code" in taken


def test_a_classifier_takes_no_new_expert(select):
    with pytest.raises(OptionError, match="learns from the prompts of all experts together"):
        radargate.add_experts(select(), {}, examples={})


@pytest.mark.parametrize("by", ["centroid", "classifier"])
def test_hidden_features_are_the_bases_own_states_and_pick_as_the_definition_says(zoo, select, by, tmp_path):
    """Read without any adapter; padded batches, caches and a saved bundle answer as the expert alone that fits."""
    tiny, tokenizer = zoo["llama"], tiny_tokenizer()
    model = select(by=by, features="hidden")
    base = load_base(str(tiny["base"])).eval()

    def feature(prompt: str) -> torch.Tensor:
        states = base.model(torch.tensor([ids(prompt)]), output_hidden_states=True).hidden_states
        state = states[3 * len(states) // 4][0].double()
        return (state / (state.square().mean(-1, keepdim=True) + 1e-12).sqrt()).sum(0)

    with torch.no_grad():
        counted = {name: [(feature(t), len(ids(t))) for t in texts] for name, texts in EXAMPLES.items()}
        mu = sum(sum(f / n for f, n in each) / len(each) for each in counted.values()) / 3
        raw = {name: torch.stack([(f - n * mu) / (n + 16) for f, n in each]) for name, each in counted.items()}
        sigma = torch.cat([*raw.values()]).square().mean().sqrt()
        directions = learn([(r / sigma).float() for r in raw.values()], by).double()
        batch = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
        words = {"max_new_tokens": 8, "do_sample": False}
        model.save_pretrained(tmp_path / "b")
        found = [m.generate(**batch, **words) for m in (model, radargate.load(None, tmp_path / "b"))]
        assert torch.equal(*found)
        for row, prompt in enumerate(PROMPTS):
            scores = directions @ ((feature(prompt) - len(ids(prompt)) * mu) / (len(ids(prompt)) + 16) / sigma)
            best = list(EXAMPLES)[int(scores.argmax())]
            alone = radargate.compose(str(tiny["base"]), {best: tiny["adapters"][best]}, gate="uniform", top_k=1).eval()
            want = alone.generate(torch.tensor([ids(prompt)]), **words)[0, len(ids(prompt)) :]
            assert torch.equal(found[0][row, batch["input_ids"].shape[1] :][: len(want)], want), (prompt, best)


def test_who_looks_at_layers_does_not_see_the_bases_own_reading(select, zoo):
    """Use of experts, traces and angles count a text once."""
    rows = {"one": [Row("what is 3*4?", "12")]}
    model = select(features="hidden")
    usage = expert_usage(model, tiny_tokenizer(), rows)
    assert sum(usage.by_task["one"].values()) == pytest.approx(1) and usage.experts_in_use == pytest.approx(1)
    assert len(next(radargate.trace(model, ids("what is 3*4?")).sites()).dense_weights()) == len(ids("what is 3*4?"))


def test_hidden_features_need_whole_prompts_and_a_decoder(zoo):
    words = {"gate": "select", "features": "hidden", "examples": EXAMPLES}
    with pytest.raises(OptionError, match="of whole prompts only"):
        radargate.compose("no/base", zoo["llama"]["adapters"], scope="text", **words)
    with pytest.raises(OptionError, match="has an encoder"):
        radargate.compose(str(zoo["t5"]["base"]), zoo["t5"]["adapters"], **words)


@pytest.mark.parametrize("gate", ["stretch", "radar"])
@pytest.mark.parametrize("start", ["zero", "select"])
def test_a_router_of_prompts_reads_the_same_prompt_in_training_and_in_answering(zoo, gate, start, tmp_path):
    """With labels it knows where a prompt ends; without, the first call is the prompt. Padding on the left, an answer of several tokens."""
    tiny, words = zoo["llama"], {"router": "prompt", "router_start": start}
    examples = {"examples": EXAMPLES} if start == "select" else {}
    model = radargate.compose(str(tiny["base"]), tiny["adapters"], gate=gate, **words, **examples)
    if start == "zero":
        radargate.describe_texts(model, [ids(text) for texts in EXAMPLES.values() for text in texts])
    phi = next(p for name, p in model.named_parameters() if name.endswith("softmax_router"))
    with torch.no_grad():
        phi += torch.randn(phi.shape, generator=torch.Generator().manual_seed(0))
    pairs = [("what is 3*4?", "12."), ("the court said so", "no, it did not")]
    whole = [ids(prompt) + ids(answer) for prompt, answer in pairs]
    wide = max(map(len, whole))
    rows = torch.tensor([[0] * (wide - len(row)) + row for row in whole])
    mask = torch.tensor([[0] * (wide - len(row)) + [1] * len(row) for row in whole])
    labels = torch.tensor([[-100] * (wide - len(ids(a))) + ids(a) for _, a in pairs])
    out = model.train()(input_ids=rows, attention_mask=mask, labels=labels)
    out.loss.backward()
    assert phi.grad.abs().sum() > 0
    model.save_pretrained(tmp_path / "b")
    with torch.no_grad():
        for answering in (model.eval(), radargate.load(None, tmp_path / "b")):
            for row, (prompt, answer) in enumerate(pairs):
                first = answering(torch.tensor([ids(prompt)]), use_cache=True)
                second = answering(torch.tensor([ids(answer)]), past_key_values=first.past_key_values)
                torch.testing.assert_close(
                    second.logits[0], out.logits[row, wide - len(ids(answer)) :], atol=1e-4, rtol=1e-4
                )


def test_our_trainer_tells_the_router_where_prompts_end(zoo, tasks, tmp_path, monkeypatch):
    seen = []
    real = running_text.ended
    monkeypatch.setattr(running_text, "ended", lambda sums: seen.append(current.get().answers) or real(sums))
    options = GateTraining(gate="stretch", gate_options={"router": "prompt"}, steps=2, batch_size=4, max_length=64)
    tiny = zoo["llama"]
    train_gates(str(tiny["base"]), tiny["adapters"], str(tasks), tmp_path / "b", options, device="cpu")
    told = [answers for answers in seen if answers is not None]
    assert len(told) >= 2 and all(bool(a.any(1).all()) and not bool(a[:, 0].any()) for a in told)


def test_labels_on_every_token_say_nothing_of_where_a_prompt_ends(select):
    model, text = select(), torch.tensor([ids("the court said so")])
    with torch.no_grad():
        assert torch.equal(model(text).logits, model(text, labels=text).logits)
    assert model(text, labels=None).logits is not None


def test_a_router_that_knows_one_expert_alone_learns_how_texts_look_when_it_is_trained(zoo):
    tiny = zoo["llama"]
    model = radargate.compose(
        str(tiny["base"]),
        tiny["adapters"],
        gate="stretch",
        router="prompt",
        router_start="select",
        examples={"law": ["x"]},
    )
    router = model.base_model._routers["default"]
    assert not router.knows_texts and not router.softmax_router.any()


def test_who_reads_prompt_and_answer_in_one_go_is_refused(select):
    from radargate.evaluation.harness import language_model

    with pytest.raises(OptionError, match="it would look at the answer too"):
        language_model(select(), tiny_tokenizer(), 1)
