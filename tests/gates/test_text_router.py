"""The router of the whole model: its formula, the text it has read with and without a cache, and what it refuses."""

from __future__ import annotations

import contextvars
import copy
import json
import math
import pickle

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_map
from transformers import BartConfig, BartForConditionalGeneration, DynamicCache

import radargate
from conftest import make_adapter
from radargate import ops
from radargate.composition.composing import radar_layers
from radargate.errors import OptionError, RadarGateError
from radargate.gates.call_state import current
from radargate.gates.router.hooks import embeddings
from radargate.gates.router.router import PRIOR_TOKENS, TextRouter
from radargate.gates.router.running_text import summed
from radargate.ops import cpp, select
from radargate.server.batch import Batch
from radargate.training.texts import routers_of

TEXTS = [[40, 41, 42, 43], [50, 51, 52, 53, 54, 55, 60], [70, 71, 80, 90, 91]]


def routed(zoo, family="llama", gate="radar", base=None, **options):
    """A composition whose router and gates are far from their start."""
    model = radargate.compose(
        base or str(zoo[family]["base"]), zoo[family]["adapters"], gate=gate, router="text", **options
    )
    radargate.describe_texts(model, TEXTS)
    stir(model)
    return model.eval()


def stir(model):
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in radar_layers(model):
            for parameter in layer.radar_gate.parameters():
                parameter += torch.randn(parameter.shape, generator=g) * 0.5


def test_log_weights_are_those_of_the_formula():
    torch.manual_seed(0)
    embedded = torch.randn(2, 7, 12, dtype=torch.float64) * 3
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    router = TextRouter(3, 12).double()
    torch.nn.init.normal_(router.softmax_router)
    texts = torch.stack([summed(torch.randn(1, 5, 12))[0, -1] for _ in range(4)]).double()
    router.describe(texts)
    mean = (texts[:, :-1] / texts[:, -1:]).mean(0)
    spread = ((texts[:, :-1] - texts[:, -1:] * mean) / (texts[:, -1:] + PRIOR_TOKENS)).square().mean().sqrt()
    found = router(summed(embedded, mask).double())
    for row in range(2):
        for t in range(7):
            read = [embedded[row, s] / embedded[row, s].square().mean().sqrt() for s in range(t + 1) if mask[row, s]]
            c = sum((e - mean for e in read), torch.zeros(12).double()) / ((len(read) + PRIOR_TOKENS) * spread)
            expected = (10 * router.softmax_router @ c / math.sqrt(12)).log_softmax(-1)
            torch.testing.assert_close(found[row, t], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_weights_are_the_gates_times_the_routers(top_k):
    torch.manual_seed(1)
    logits, prior = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64).log_softmax(-1)
    on = torch.tensor([1.0, 0.0, 2.0, 1.0], dtype=torch.float64)
    weights, indices = select(logits, top_k, renormalize="always", multipliers=on, prior=prior)
    product = logits.softmax(-1) * prior.exp() * on
    if indices is not None:
        torch.testing.assert_close(indices, product.sort(dim=-1, descending=True, stable=True).indices[:, :top_k])
        product = product.gather(-1, indices)
    torch.testing.assert_close(weights, product / product.sum(-1, keepdim=True))


def test_untrained_it_changes_nothing(zoo):
    ids = torch.tensor([TEXTS[1]])
    plain = radargate.compose(str(zoo["llama"]["base"]), zoo["llama"]["adapters"], gate="stretch").eval()
    with_router = radargate.compose(
        str(zoo["llama"]["base"]), zoo["llama"]["adapters"], gate="stretch", router="text"
    ).eval()
    torch.testing.assert_close(with_router(input_ids=ids).logits, plain(input_ids=ids).logits)
    radargate.describe_texts(with_router, TEXTS)
    torch.testing.assert_close(with_router(input_ids=ids).logits, plain(input_ids=ids).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("gate", ["stretch", "radar"])
def test_read_in_pieces_padded_or_at_once(zoo, family, gate):
    model = routed(zoo, family, gate)
    ids, mask = torch.tensor([TEXTS[1]]), torch.ones(1, 7, dtype=torch.long)
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        first = model(input_ids=ids[:, :3], use_cache=True)
        rest = [
            model(
                input_ids=ids[:, 3:5], attention_mask=mask[:, :5], past_key_values=first.past_key_values, use_cache=True
            )
        ]
        rest += [
            model(
                input_ids=ids[:, i : i + 1],
                attention_mask=mask[:, : i + 1],
                past_key_values=first.past_key_values,
                use_cache=True,
            )
            for i in (5, 6)
        ]
        pieces = torch.cat([first.logits, *(out.logits for out in rest)], 1)
        torch.testing.assert_close(pieces, whole, atol=1e-4, rtol=1e-4)
        padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], 1)
        real = torch.cat([torch.zeros(1, 4, dtype=torch.long), mask], 1)
        left = model(input_ids=padded, attention_mask=real, position_ids=(real.cumsum(1) - 1).clamp_min(0)).logits
        torch.testing.assert_close(left[:, 4:], whole, atol=1e-4, rtol=1e-4)
        other = model(input_ids=torch.tensor([[90, *TEXTS[1][1:]]])).logits
        assert not torch.allclose(other[:, -1], whole[:, -1], atol=1e-3)
        embedded = model.get_input_embeddings()(ids)
        torch.testing.assert_close(model(inputs_embeds=embedded).logits, whole)


def test_each_token_sees_only_the_text_before_it(zoo):
    model = routed(zoo)
    ids = torch.tensor([TEXTS[1]])
    with torch.no_grad():
        longer = torch.cat([ids, torch.tensor([[99, 98, 97]])], 1)
        torch.testing.assert_close(
            model(input_ids=longer).logits[:, :7], model(input_ids=ids).logits, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": False}])
def test_generation_with_a_cache_is_that_without(zoo, how):
    model = routed(zoo)
    ids = torch.tensor([[0, 0, 0, *TEXTS[0]], TEXTS[1]])
    common = {"input_ids": ids, "attention_mask": (ids > 0).long(), "max_new_tokens": 12, "pad_token_id": 0, **how}
    assert torch.equal(model.generate(**common, use_cache=True), model.generate(**common, use_cache=False))


def test_saved_and_loaded_it_answers_the_same(zoo, load_tiny, tmp_path):
    model, ids = routed(zoo), torch.tensor([TEXTS[1]])
    model.save_pretrained(tmp_path)
    expected = model(input_ids=ids).logits
    for loaded in (
        radargate.load(load_tiny(), tmp_path),
        PeftModel.from_pretrained(load_tiny(), tmp_path),
    ):
        assert len(routers_of(loaded)) == 1
        torch.testing.assert_close(loaded.eval()(input_ids=ids).logits, expected)


def test_unloaded_the_base_and_its_caches_are_as_before(zoo, load_tiny):
    base, ids = load_tiny(), torch.tensor([TEXTS[1]])
    before = base(input_ids=ids, use_cache=True)
    model = routed(zoo, base=base)
    with model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, before.logits)
    after = model.base_model.unload()(input_ids=ids, use_cache=True)
    assert torch.equal(after.logits, before.logits)
    assert type(after.past_key_values) is type(before.past_key_values)
    assert current.blocks == 0


def test_two_compositions_of_one_base_keep_their_own(zoo, load_tiny, tmp_path):
    ids = torch.tensor([TEXTS[1]])
    for i, gate in enumerate(("radar", "stretch")):
        routed(zoo, gate=gate, seed=i).save_pretrained(tmp_path / gate)
    alone = [radargate.load(load_tiny(), tmp_path / gate).eval()(input_ids=ids).logits for gate in ("radar", "stretch")]
    base = load_tiny()
    first = radargate.load(base, tmp_path / "radar", adapter_name="a").eval()
    second = radargate.load(base, tmp_path / "stretch", adapter_name="b").eval()
    for model, name, expected in ((first, "a", alone[0]), (second, "b", alone[1]), (first, "a", alone[0])):
        model.set_adapter(name)
        with torch.no_grad():
            start = model(input_ids=ids[:, :4], use_cache=True)
            end = model(
                input_ids=ids[:, 4:], attention_mask=torch.ones_like(ids), past_key_values=start.past_key_values
            )
        torch.testing.assert_close(torch.cat([start.logits, end.logits], 1), expected, atol=1e-4, rtol=1e-4)


def test_rows_join_and_leave_a_batch_with_their_own_text(zoo):
    model = routed(zoo)
    base = model.get_base_model()
    alone = []
    for text in TEXTS:
        batch = Batch(base, 0)
        logits, cache, mask = batch.read(model, [text])
        batch.merge(cache, mask)
        alone.append([logits, batch.step(model, [65]), batch.step(model, [66])])
    batch = Batch(base, 0)
    _, cache, mask = batch.read(model, TEXTS[:2])
    batch.merge(cache, mask)
    torch.testing.assert_close(batch.step(model, [65, 65]), torch.cat([alone[0][1], alone[1][1]]), atol=1e-4, rtol=1e-4)
    logits, cache, mask = batch.read(model, TEXTS[2:])
    torch.testing.assert_close(logits, alone[2][0], atol=1e-4, rtol=1e-4)
    batch.merge(cache, mask)
    batch.keep([1, 2])
    found = batch.step(model, [66, 65])
    torch.testing.assert_close(found, torch.cat([alone[1][2], alone[2][1]]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(zoo, reentrant):
    ids = torch.tensor([TEXTS[1]])
    found = []
    for checkpointed in (False, True):
        model = routed(zoo).train()
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(input_ids=ids, labels=ids).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert any(name.endswith("softmax_router") and grad.any() for name, grad in found[0].items())
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, atol=1e-5, rtol=1e-4)


def test_masked_experts_stay_masked(zoo):
    model, ids = routed(zoo, gate="stretch", top_k=None), torch.tensor([TEXTS[1]])
    seen = []

    def look(layer, args):
        gated = layer.gated(args[0], "default")
        names = [layer.entries["default"][0].experts[i] for i in layer.entries["default"][1]["experts"]]
        seen.append((names, gated.weights))

    hooks = [layer.register_forward_pre_hook(look) for layer in radar_layers(model)]
    with radargate.using(model, {"law": 0.0}):
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    assert seen and all(not weights[..., names.index("law")].any() for names, weights in seen if "law" in names)


def test_what_it_cannot_do_is_said(zoo, load_tiny, tmp_path):
    ids = torch.tensor([TEXTS[1]])
    stateful = load_tiny("llama")
    stateful._is_stateful = True
    with pytest.raises(OptionError, match="is stateful"):
        radargate.compose(stateful, zoo["llama"]["adapters"], router="text")
    assert not radar_layers(stateful), "a refusal leaves the base as it was"
    head = make_adapter(zoo["llama"]["base"], tmp_path / "head", seed=1, r=4, target_modules=["q_proj", "lm_head"])
    tensors = load_file(head / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if "base_layer" not in k}, head / "adapter_model.safetensors")
    with pytest.raises(OptionError, match="output layer"):
        radargate.compose(str(zoo["llama"]["base"]), {"head": head, **zoo["llama"]["adapters"]}, router="text")
    fresh = radargate.compose(str(zoo["llama"]["base"]), zoo["llama"]["adapters"], router="text").train()
    with pytest.raises(OptionError, match="describe_texts"):
        fresh(input_ids=ids, labels=ids)
    assert current.blocks == 0, "a call that failed leaves nothing open"
    with pytest.raises(OptionError, match="all training prompts are alike"):
        radargate.describe_texts(fresh, [TEXTS[0], TEXTS[0]])
    plain = radargate.compose(str(zoo["llama"]["base"]), zoo["llama"]["adapters"])
    with pytest.raises(OptionError, match="found 0 routers"):
        radargate.describe_texts(plain, TEXTS)
    model = routed(zoo)
    cache = load_tiny()(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(RadarGateError, match="filled without it"):
        model(input_ids=ids, past_key_values=cache, attention_mask=torch.ones(1, 14))
    own = model(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(OptionError, match="assisted generation"):
        own.crop(2)
    with pytest.raises(RadarGateError, match=r"\[batch, length\]"):
        model(input_ids=ids, attention_mask=torch.zeros(1, 1, 7, 7))
    with model.disable_adapter():
        model(input_ids=ids, attention_mask=torch.zeros(1, 1, 7, 7))
    with pytest.raises(RadarGateError, match="packed into one row"):
        model(input_ids=ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]))
    layer = radar_layers(model)[0]
    with pytest.raises(RadarGateError, match="Call the model as a whole"):
        layer(torch.zeros(1, 7, 24))


def test_training_learns_where_texts_differ_and_experts_help(zoo, tmp_path):
    """Two kinds of prompts whose best experts differ by construction: the router finds them."""
    base = zoo["llama"]["base"]
    adapters = {
        name: make_adapter(
            base, tmp_path / name, seed=i, r=4, lora_alpha=64, target_modules=["q_proj", "v_proj", "down_proj"]
        )
        for i, name in enumerate(("one", "two"))
    }
    g = torch.Generator().manual_seed(0)
    prompts = {"one": torch.randint(20, 60, (12, 8), generator=g), "two": torch.randint(120, 160, (12, 8), generator=g)}
    # the right answer is what the right expert alone would say
    answers = {}
    for name, ids in prompts.items():
        alone = radargate.compose(str(base), {name: adapters[name]}, gate="uniform", top_k=1).eval()
        answers[name] = alone(input_ids=ids).logits[:, -1].argmax(-1)
    model = radargate.compose(str(base), adapters, gate="stretch", router="text", top_k=None)
    radargate.describe_texts(model, torch.cat(list(prompts.values())).tolist())
    optimizer = torch.optim.AdamW(radargate.parameter_groups(model, lr=2e-2))
    model.train()
    for _ in range(40):
        loss = sum(
            torch.nn.functional.cross_entropy(model(input_ids=ids).logits[:, -1], answers[name])
            for name, ids in prompts.items()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    router, embed = routers_of(model)[0], model.get_input_embeddings()
    share = {name: router(summed(embed(ids)))[:, -1].exp().mean(0) for name, ids in prompts.items()}
    assert share["one"][0] > 0.6 and share["two"][1] > 0.6, share


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_options_come_through_the_command_line(zoo, tmp_path, family):
    from radargate.cli import main

    rows = [{"prompt": f"{a} plus {b}", "target": str(a + b)} for a in range(4) for b in range(3)]
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"sums.{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    given = [f"{name}={path}" for name, path in zoo[family]["adapters"].items()]
    base = str(zoo[family]["base"])
    assert (
        main(
            [
                "train",
                base,
                *given,
                "--data",
                str(data),
                "--steps",
                "2",
                "--batch-size",
                "2",
                "--option",
                "router=text",
                "--out",
                str(tmp_path / "bundle"),
            ]
        )
        == 0
    )
    assert main(["eval", str(tmp_path / "bundle"), "--data", str(data), "--out", str(tmp_path / "scores.jsonl")]) == 0
    assert main(["generate", str(tmp_path / "bundle"), "--prompt", "1 plus 1", "--max-new-tokens", "3"]) == 0
    loaded = radargate.load(base, tmp_path / "bundle")
    assert routers_of(loaded)[0].text_spread > 0


@pytest.mark.parametrize("gate", ["stretch", "radar"])
@pytest.mark.parametrize("top_k", [1, 2, None])
def test_one_compiled_call_says_what_the_single_steps_say(zoo, gate, top_k, monkeypatch):
    if not cpp.available()[0]:
        pytest.skip("no C++ compiler here")
    model, ids = routed(zoo, gate=gate, top_k=top_k), torch.tensor([TEXTS[1]])
    called, site = [], ops.site

    def counted(*args):
        found = site(*args)
        called.append(found is not None and args[-1] is not None)
        return found

    monkeypatch.setattr(ops, "site", counted)
    with torch.no_grad():
        at_once = model(input_ids=ids).logits
        assert any(called)
        monkeypatch.setattr(ops, "site_applies", lambda *_: False)
        torch.testing.assert_close(at_once, model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_a_cache_that_is_filled_but_not_returned_knows_its_text(zoo):
    """As Mistral's and other models do it under use_cache=False."""
    model, ids = routed(zoo), torch.tensor([TEXTS[1]])
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=ids[:, :3], past_key_values=cache, use_cache=True)
        stack = model.get_base_model().get_decoder()
        hook = stack.register_forward_hook(
            lambda _, args, out: type(out)(last_hidden_state=out.last_hidden_state), prepend=True
        )
        model(input_ids=ids[:, 3:5], attention_mask=torch.ones(1, 5), past_key_values=cache)
        hook.remove()
        end = model(input_ids=ids[:, 5:], attention_mask=torch.ones(1, 7), past_key_values=cache).logits
        torch.testing.assert_close(end, model(input_ids=ids).logits[:, 5:], atol=1e-4, rtol=1e-4)


def test_caches_and_models_can_be_copied_and_pickled(zoo):
    model, ids = routed(zoo), torch.tensor([TEXTS[1]])
    model.train()(input_ids=ids, labels=ids).loss.backward()
    model.eval()
    torch.testing.assert_close(copy.deepcopy(model)(input_ids=ids).logits, model(input_ids=ids).logits)
    with torch.no_grad():
        cache = model(input_ids=ids[:, :4], use_cache=True).past_key_values
        expected = model(input_ids=ids).logits[:, 4:]
        for copied in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
            rest = model(input_ids=ids[:, 4:], attention_mask=torch.ones_like(ids), past_key_values=copied).logits
            torch.testing.assert_close(rest, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_goes_along_to_another_dtype(zoo, dtype):
    model, ids = routed(zoo), torch.tensor([TEXTS[1]])
    before = model(input_ids=ids).logits
    torch.testing.assert_close(
        model.to(dtype)(input_ids=ids).logits.float(), before, atol=0.3 if dtype == torch.bfloat16 else 1e-3, rtol=0
    )


def test_a_deleted_composition_takes_its_router_along(zoo, load_tiny, tmp_path):
    ids = torch.tensor([TEXTS[1]])
    routed(zoo).save_pretrained(tmp_path / "routed")
    plain = radargate.compose(str(zoo["llama"]["base"]), zoo["llama"]["adapters"], gate="stretch").eval()
    plain.save_pretrained(tmp_path / "plain")
    model = radargate.load(load_tiny(), tmp_path / "routed", adapter_name="a").eval()
    model.load_adapter(str(tmp_path / "plain"), adapter_name="b")
    model.set_adapter("b")
    torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    model.delete_adapter("a")
    model.load_adapter(str(tmp_path / "plain"), adapter_name="a")
    model.set_adapter("a")
    torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert not routers_of(model)


def test_only_the_composition_at_work_learns_how_texts_look(zoo, load_tiny, tmp_path):
    routed(zoo).save_pretrained(tmp_path / "first")
    model = radargate.load(load_tiny(), tmp_path / "first", adapter_name="a")
    first = routers_of(model)[0].text_mean.clone()
    model.load_adapter(str(tmp_path / "first"), adapter_name="b")
    model.set_adapter("b")
    radargate.describe_texts(model, TEXTS[:2])
    model.set_adapter("a")
    assert torch.equal(routers_of(model)[0].text_mean, first)


def test_the_base_called_itself_in_training_is_weighed_by_its_own_text(zoo):
    model = routed(zoo, gate="stretch").train()
    first, second = (torch.tensor([ids]) for ids in (TEXTS[1], [90, 91, 92, 93, 94, 95, 96]))
    expected = model(input_ids=second).logits
    model(input_ids=first)
    torch.testing.assert_close(model.get_base_model()(input_ids=second).logits, expected)


def test_one_expert_alone_needs_no_router(zoo):
    only = {"law": zoo["llama"]["adapters"]["law"]}
    model = radargate.compose(str(zoo["llama"]["base"]), only, gate="radar", top_k=1, router="text")
    assert not routers_of(model) and not [p for p in model.parameters() if p.requires_grad]
    model(input_ids=torch.tensor([TEXTS[0]]))


def encoded(model, ids, mask=None):
    return model.get_base_model().get_encoder()(input_ids=ids, attention_mask=mask)


@pytest.fixture(scope="module")
def seq2seq(zoo, tmp_path_factory):
    """The zoo with a BART, whose stacks look tokens up in modules of their own."""
    root = tmp_path_factory.mktemp("bart")
    torch.manual_seed(0)
    sizes = {
        f"{stack}_{name}": size
        for stack in ("encoder", "decoder")
        for name, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 40))
    }
    BartForConditionalGeneration(
        BartConfig(
            d_model=24,
            vocab_size=258,
            max_position_embeddings=64,
            dropout=0.0,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
            decoder_start_token_id=0,
            forced_eos_token_id=None,
            **sizes,
        )
    ).save_pretrained(root / "tiny-bart")
    adapters = {
        name: make_adapter(root / "tiny-bart", root / name, seed=i, r=4, target_modules=["q_proj", "k_proj", "fc1"])
        for i, name in enumerate(("math", "law", "code"))
    }
    return {**zoo, "bart": {"base": root / "tiny-bart", "adapters": adapters}}


@pytest.mark.parametrize("gate", ["stretch", "radar"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_goes_by_all_that_its_encoder_reads(seq2seq, family, gate):
    model = routed(seq2seq, family, gate)
    ids, labels = torch.tensor([TEXTS[1]]), torch.tensor([[60, 61, 62]])
    seen = []
    (router,) = routers_of(model)
    router.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        whole = model(input_ids=ids, labels=labels).logits
        wanted = summed(embeddings(model.get_base_model())(ids))[:, -1:]
        assert seen and all(torch.equal(sums, wanted) and said.shape == (1, 1, 3) for sums, said in seen)
        # padded, from outputs of the encoder, and token by token
        padded, mask = (
            torch.tensor([[*TEXTS[1], 0, 0], [*TEXTS[0], *[0] * 5]]),
            torch.tensor([[1] * 7 + [0] * 2, [1] * 4 + [0] * 5]),
        )
        both = model(input_ids=padded, attention_mask=mask, labels=labels.repeat(2, 1)).logits
        torch.testing.assert_close(both[:1], whole, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            both[1:], model(input_ids=torch.tensor([TEXTS[0]]), labels=labels).logits, atol=1e-4, rtol=1e-4
        )
        outputs = encoded(model, padded, mask)
        later = model(encoder_outputs=outputs, attention_mask=mask, labels=labels.repeat(2, 1)).logits
        torch.testing.assert_close(later, both)
        cache = None
        for place, token in enumerate((0, 60, 61)):
            step = model(
                encoder_outputs=outputs,
                attention_mask=mask,
                decoder_input_ids=torch.tensor([[token]] * 2),
                past_key_values=cache,
                use_cache=True,
            )
            cache = step.past_key_values
            torch.testing.assert_close(step.logits[:, 0], both[:, place], atol=1e-4, rtol=1e-4)
        direct = model.get_base_model()(input_ids=padded, attention_mask=mask, labels=labels.repeat(2, 1)).logits
        torch.testing.assert_close(direct, both)
        other = model(input_ids=torch.tensor([[90, 91, *TEXTS[1][2:]]]), labels=labels).logits
        assert not torch.allclose(other, whole, atol=1e-3)
    assert current.get().text is None


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": False}])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_generates_as_without_a_cache(seq2seq, family, how):
    model = routed(seq2seq, family)
    ids, mask = (
        torch.tensor([[*TEXTS[1], 0, 0], [*TEXTS[0], *[0] * 5]]),
        torch.tensor([[1] * 7 + [0] * 2, [1] * 4 + [0] * 5]),
    )
    options = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 5, "min_new_tokens": 5, **how}
    assert torch.equal(model.generate(**options, use_cache=True), model.generate(**options, use_cache=False))
    alone = model.generate(**{**options, "input_ids": ids[1:, :4], "attention_mask": mask[1:, :4]})
    assert torch.equal(model.generate(**options)[-len(alone) :], alone)
    assert current.get().text is None


def test_an_encoder_decoder_learns_to_route_and_refuses_what_it_cannot_know(zoo):
    model = routed(zoo, "t5").train()
    ids, labels = torch.tensor([TEXTS[1], [*TEXTS[0], 60, 61, 62]]), torch.tensor([[60, 61, 62]] * 2)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        (router,) = routers_of(model)
        found.append(router.softmax_router.grad.clone())
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(found[1], found[0])
    model.gradient_checkpointing_disable()
    outputs = encoded(model.eval(), ids)
    strange = {"last_hidden_state": outputs.last_hidden_state}
    for given in (type(outputs)(**strange), (outputs.last_hidden_state,)):
        with pytest.raises(RadarGateError, match="does not know what these encoder_outputs were made from"):
            model(encoder_outputs=given, labels=labels)
    assert current.get().text is None
    with model.disable_adapter():
        model(encoder_outputs=type(outputs)(**strange), labels=labels)


@torch.no_grad()
def test_however_an_encoder_is_given_its_text(seq2seq):
    model = routed(seq2seq, "bart")
    base, ids, mask = model.get_base_model(), torch.tensor([[*TEXTS[0], 0, 0]]), torch.tensor([[1] * 4 + [0] * 2])
    wanted = summed(embeddings(base)(ids), mask)[:, -1]
    by_name, by_place = base.get_encoder()(input_ids=ids, attention_mask=mask), base.get_encoder()(ids, mask)
    for outputs in (by_name, by_place, pickle.loads(pickle.dumps(by_name)), tree_map(torch.clone, by_name)):
        torch.testing.assert_close(outputs["radargate_text"], wanted)
    answer = torch.tensor([[60, 61]])
    logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=answer).logits
    torch.testing.assert_close(base(None, mask, answer, None, by_name).logits, logits)
    # one embedding in the place of two, whose tokens are the decoder's where the encoder is not called
    base.resize_token_embeddings(260)
    assert base.get_encoder().embed_tokens is base.get_decoder().embed_tokens
    torch.testing.assert_close(
        model(input_ids=ids, attention_mask=mask, decoder_input_ids=answer).logits[..., :258], logits
    )
    with pytest.raises(RadarGateError, match="does not know what these encoder_outputs"):
        base(None, mask, answer, None, (by_name.last_hidden_state,))


@pytest.mark.parametrize("where", ["encoder", "decoder"])
def test_an_interrupted_answer_leaves_no_text_behind(seq2seq, where):
    model = routed(seq2seq, "bart")
    base, first, second = model.get_base_model(), *(torch.tensor([ids]) for ids in TEXTS[:2])
    wanted = encoded(model, second)["radargate_text"]

    def stop(*_):
        raise KeyboardInterrupt

    handle = getattr(base.model, where).layers[1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        model.generate(input_ids=first, max_new_tokens=2)
    assert current.get().text is None

    def without_peft():
        with pytest.raises(KeyboardInterrupt):
            base.generate(input_ids=first, max_new_tokens=2)
        handle.remove()
        torch.testing.assert_close(encoded(model, second)["radargate_text"], wanted)
        model.train()(input_ids=first, labels=second)
        copy.deepcopy(model)

    contextvars.copy_context().run(without_peft)
    current.blocks = 0  # the context of the call without PEFT is gone, with what it left open


def test_a_base_without_token_embeddings_is_left_as_it_was(load_tiny, zoo):
    base = load_tiny("t5")
    base.encoder.get_input_embeddings = lambda: torch.nn.Conv1d(3, 24, 3)
    with pytest.raises(OptionError, match="has Conv1d there"):
        radargate.compose(base, zoo["t5"]["adapters"], router="text")
    assert not radar_layers(base) and not any(module._forward_hooks for module in base.modules())
