"""A trace says what happened: its numbers are those of a literal recomputation, and switching experts off is `using`."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import radargate
from conftest import build, tiny_tokenizer
from model_classes import CASES
from radargate.composition.composing import radar_layers
from radargate.composition.layer import using
from radargate.errors import OptionError, RadarGateError
from radargate.explorer.files import Trace
from radargate.explorer.tokens import token_texts
from radargate.gates.rotation import size_of_down
from radargate.ops import reference as literal
from test_model import turn

PROMPT, ANSWER = "is a whale a fish?", "no"


def compose(zoo, base, family="llama", which="adapters", **options):
    model = radargate.compose(base, zoo[family][which], **options)
    turn(model)
    return model.eval()


@torch.no_grad()
def seen(model, ids, **more):
    """Site → (input, output) of one call."""
    found = {}

    def keep(layer, args, y):
        found[layer.site] = (args[0][0], y[0])

    hooks = [layer.register_forward_hook(keep) for layer in radar_layers(model)]
    model(input_ids=torch.tensor([ids]), **more)
    for hook in hooks:
        hook.remove()
    return found


def literal_site(layer, x, omoe=False):
    """Everything a `SiteTrace` says of a site under the radar gate, step by step from the formulas."""
    bank, gate = layer.bank("default"), layer.gate("default")
    n, ranks = len(bank.ranks), list(bank.ranks)
    A = [bank.A] * n if bank.A.shape[0] == ranks[0] and n > 1 else list(bank.A.split(ranks))
    v = literal.expert_outputs(x, A, [s * b.T for s, b in zip(bank.scales, bank.B.split(ranks), strict=True)])
    v = literal.gram_schmidt(v) if omoe else v
    weights, indices = (x @ gate.softmax_theta.T).softmax(-1).topk(min(2, n), -1)
    dense = torch.zeros(x.shape[0], n).scatter(1, indices, weights / weights.sum(-1, keepdim=True))
    down = gate.rotation_down * size_of_down(gate.rotation_down)
    alpha = literal.angles(v, down, gate.rotation_up, angle_norm="unit")
    turned = literal.rotate(v, alpha)
    return {
        "v": v,
        "turned": turned,
        "dense": dense,
        "indices": indices,
        "angles": alpha.abs().mean(-1),
        "update": (turned * dense[..., None]).sum(-2),
    }


def mean_cosine(v):
    unit = v / v.norm(dim=-1, keepdim=True)
    return torch.einsum("tid,tjd->ij", unit, unit) / v.shape[0]


@pytest.mark.parametrize(
    ("architecture", "which", "options"),
    [
        ("mole", "adapters", {}),
        ("mole", "adapters", {"route": "merged"}),
        ("hydra", "equal", {"convert": True}),
        ("omoe", "adapters", {}),
    ],
)
@torch.no_grad()
def test_every_number_is_that_of_a_literal_recomputation(zoo, load_tiny, architecture, which, options):
    model = compose(zoo, load_tiny(), which=which, architecture=architecture, architecture_options=options)
    ids = tiny_tokenizer().encode(PROMPT)
    trace, inputs = radargate.trace(model, ids, leave_one_out=False), seen(model, ids)
    assert trace.tokens == [str(i) for i in ids] and trace.prompt_length == len(ids) and not trace.without
    assert trace.site_names == [layer.site for layer in radar_layers(model) if layer.site in inputs]
    compared = 0
    for layer in radar_layers(model):
        site, (x, y) = trace.site(layer.site), inputs[layer.site]
        plain = layer.base_layer(x)
        torch.testing.assert_close(site.base, plain.norm(dim=-1), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(site.update, (y - plain).norm(dim=-1), rtol=1e-3, atol=1e-4)
        if len(site.experts) == 1:
            assert (site.weights == 1).all() and (site.angles == 0).all() and (site.entropy() == 0).all()
            continue
        want = literal_site(layer, x, architecture == "omoe")
        chosen = site.indices.long()
        assert torch.equal(chosen.sort(-1)[0], want["indices"].sort(-1)[0])
        torch.testing.assert_close(site.dense_weights(), want["dense"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(site.weights, want["dense"].gather(1, chosen), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(site.angles, want["angles"].gather(1, chosen), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(site.expert_norms, want["v"].norm(dim=-1), rtol=1e-3, atol=1e-4)
        own = want["v"].norm(dim=-1).gather(1, chosen)
        torch.testing.assert_close(site.contributions, site.weights * own, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(site.update, want["update"].norm(dim=-1), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(site.cosine_before, mean_cosine(want["v"]), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(site.cosine_after, mean_cosine(want["turned"]), rtol=1e-3, atol=1e-4)
        flat = torch.stack([want["v"].mean(0), want["turned"].mean(0)])
        _, _, axes = torch.linalg.svd(flat.flatten(0, 1).double(), full_matrices=False)
        kept = (flat.double() @ axes[:2].T).norm(dim=-1).float()
        torch.testing.assert_close(
            torch.stack([site.map_before, site.map_after]).norm(dim=-1), kept, rtol=1e-3, atol=1e-4
        )
        compared += 1
    assert compared >= 2


def test_the_merged_route_traces_like_the_direct_one_and_stays_merged(zoo, load_tiny):
    traces = []
    for route in ("direct", "merged"):
        model = compose(zoo, load_tiny(), architecture_options={"route": route})
        traces.append(radargate.trace(model, PROMPT, answer=ANSWER))
        assert {layer.architectures["default"].options.route for layer in radar_layers(model)} == {route}
    direct, merged = traces
    torch.testing.assert_close(direct.nll, merged.nll, rtol=1e-4, atol=1e-4)
    for one, other in zip(direct.sites(), merged.sites(), strict=True):
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, getattr(other, name), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "t5"])
@torch.no_grad()
def test_without_an_expert_is_using_it_at_zero(zoo, load_tiny, family):
    model, tokenizer = compose(zoo, load_tiny(family), family), tiny_tokenizer()
    trace = radargate.trace(model, PROMPT, answer=ANSWER, tokenizer=tokenizer)
    if family == "t5":
        ids = [0, *tokenizer.encode(ANSWER)]
        given = {"input_ids": torch.tensor([tokenizer.encode(PROMPT)]), "decoder_input_ids": torch.tensor([ids])}
    else:
        ids = tokenizer.encode(f"{PROMPT} {ANSWER}")
        given = {"input_ids": torch.tensor([ids])}

    def nll():
        logits = model(**given).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")

    torch.testing.assert_close(torch.tensor(trace.nll), nll(), rtol=1e-4, atol=1e-4)
    start = trace.prompt_length - 1
    for name in ("math", "law", "code"):
        with using(model, {name: 0.0}):
            without = nll()
        torch.testing.assert_close(torch.tensor(trace.without[name]), without, rtol=1e-4, atol=1e-4)
        rise = float(without[start:].mean() - sum(trace.nll[start:]) / len(trace.nll[start:]))
        assert trace.effect()[name] == pytest.approx(rise, abs=1e-4)
    assert any(abs(rise) > 1e-3 for rise in trace.effect().values())


def test_an_encoder_decoder_is_traced_on_both_sides(zoo, load_tiny):
    tokenizer = tiny_tokenizer()
    trace = radargate.trace(compose(zoo, load_tiny("t5"), "t5"), PROMPT, answer=ANSWER, tokenizer=tokenizer)
    assert "".join(trace.facts["encoder_tokens"]) == PROMPT
    assert "".join(trace.tokens[trace.prompt_length :]) == ANSWER and trace.prompt_length == 1
    reads = set(trace.facts["on_encoder"])
    assert reads and reads != set(trace.site_names)
    for site in trace.sites():
        assert site.weights.shape[0] == len(PROMPT if site.site in reads else trace.tokens)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_the_model_writes_the_answer_where_none_is_given(zoo, load_tiny, family):
    model, tokenizer = compose(zoo, load_tiny(family), family), tiny_tokenizer()
    trace = radargate.trace(model, PROMPT, max_new_tokens=3, tokenizer=tokenizer, leave_one_out=False)
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    written = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False, pad_token_id=0)[0].tolist()
    written = written[1:] if family == "t5" else written[ids.shape[1] :]
    told = trace.tokens[trace.prompt_length :]
    assert len(told) == len(written) <= 3 and written and "".join(told) == tokenizer.decode(written)


def test_characters_that_are_split_over_tokens_are_shown_whole(zoo, load_tiny):
    text = "né 😀€!"
    trace = radargate.trace(
        compose(zoo, load_tiny()), text, tokenizer=tiny_tokenizer(), leave_one_out=False, pairs=False
    )
    assert trace.tokens == ["n", "", "é", " ", "", "", "", "😀", "", "", "€", "!"]
    assert "".join(trace.tokens) == text and len(trace.tokens) == len(text.encode())


def test_bytes_that_are_no_character_stay_visible_and_nothing_is_lost():
    tokenizer = tiny_tokenizer()
    byte = {b: i for i, b in enumerate(byte_of_token(tokenizer, i) for i in range(258)) if b is not None}
    for raw in (b"\xc3a", b"\x80\x80\x80\x80\x80\x80b", b"ok \xf0\x9f", b"\xff", b"\xe2\x82 \xe2\x82\xac"):
        texts = token_texts([byte[b] for b in raw], tokenizer)
        assert len(texts) == len(raw) and "\ufffd" in "".join(texts)
        assert "".join(texts).replace("\ufffd", "") == raw.decode(errors="ignore")


def byte_of_token(tokenizer, token):
    """The byte that a token of the byte-level alphabet stands for; None for special ones."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    back = {sign: byte for byte, sign in bytes_to_unicode().items()}
    return back.get(tokenizer.convert_ids_to_tokens(token))


def test_spaces_that_a_tokenizer_drops_in_front_are_kept():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "▁a": 1, "▁whale": 2, "s": 3}, unk_token="<unk>"))
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert tokenizer.decode([2]) == "whale"
    assert token_texts([1, 2, 3, 2], tokenizer) == ["a", " whale", "s", " whale"]
    assert token_texts([], tokenizer) == []


def test_an_answer_may_be_token_ids_and_factors_around_a_trace_stay(zoo, load_tiny):
    model, tokenizer = compose(zoo, load_tiny()), tiny_tokenizer()
    prompt, answer = tokenizer.encode(PROMPT), tokenizer.encode("yes")
    with using(model, {"math": 0.0}):
        trace = radargate.trace(model, prompt, answer=answer, tokenizer=tokenizer)
    assert trace.prompt_length == len(prompt) and "".join(trace.tokens) == PROMPT + "yes"
    torch.testing.assert_close(torch.tensor(trace.nll), torch.tensor(trace.without["math"]), msg="math was off already")
    with using(model, {"math": 0.0, "law": 0.0}):
        both = radargate.trace(model, prompt, answer=answer, tokenizer=tokenizer, leave_one_out=False)
    torch.testing.assert_close(torch.tensor(trace.without["law"]), torch.tensor(both.nll))


@pytest.mark.parametrize(
    "options", [{}, {"gate": "stretch"}, {"reference": "selected"}, {"architecture": "omoe"}, {"gate": "uniform"}]
)
def test_where_all_experts_are_off_nothing_is_added_and_every_number_is_one(zoo, load_tiny, options):
    model = compose(zoo, load_tiny(), **options)
    with using(model, dict.fromkeys(("math", "law", "code"), 0.0)):
        trace = radargate.trace(model, PROMPT, leave_one_out=False)
    for site in trace.sites():
        assert all(bool(torch.isfinite(t).all()) for t in vars(site).values() if isinstance(t, torch.Tensor))
        assert (site.weights == 0).all() and (site.update == 0).all() and (site.base > 0).all()


@pytest.mark.parametrize("prompt", [PROMPT, tiny_tokenizer().encode(PROMPT)])
def test_prompt_and_answer_part_where_the_answer_begins(zoo, load_tiny, prompt):
    model, tokenizer = compose(zoo, load_tiny()), tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %} assistant:{{ '\\n' }}"
    more = {"answer": ANSWER, "tokenizer": tokenizer, "pairs": False, "leave_one_out": False}
    for chat, begins in ((True, PROMPT + " assistant:\n"), (False, PROMPT)):
        trace = radargate.trace(model, prompt, chat=chat, **more)
        begins = begins if isinstance(prompt, str) else PROMPT
        assert "".join(trace.tokens) == begins + ANSWER
        assert "".join(trace.tokens[trace.prompt_length :]) == ANSWER


def test_a_composition_of_another_name_is_traced_while_it_is_active(zoo, tmp_path):
    for name, experts in (("mine", ("math", "law")), ("other", ("code",))):
        adapters = {expert: zoo["llama"]["adapters"][expert] for expert in experts}
        radargate.compose(str(zoo["llama"]["base"]), adapters, gate="uniform", top_k=1).save_pretrained(tmp_path / name)
    first = radargate.load(None, tmp_path / "mine", adapter_name="mine")
    trace = radargate.trace(first, PROMPT, adapter_name="mine")  # without a tokenizer: the base's own is found
    assert trace.experts == ["math", "law"] and "".join(trace.tokens) == PROMPT
    second = radargate.load(first.get_base_model(), tmp_path / "other", adapter_name="other")
    assert radargate.trace(second, PROMPT, adapter_name="other").experts == ["code"]
    for name in ("mine", "default"):
        with pytest.raises(OptionError, match=f"composition '{name}' is not active, found other"):
            radargate.trace(second, PROMPT, adapter_name=name)


def test_a_trace_reads_back_from_disk_without_pairs_where_they_were_not_asked_for(zoo, load_tiny, tmp_path):
    model = compose(zoo, load_tiny()).train()
    trace = radargate.trace(model, PROMPT, out=tmp_path / "trace", pairs=False, leave_one_out=False)
    assert model.training
    again = Trace(tmp_path / "trace")
    assert again.tokens == trace.tokens and again.nll == trace.nll and "".join(again.tokens) == PROMPT
    assert all(site.cosine_before.numel() == 0 and site.map_after.numel() == 0 for site in again.sites())
    with pytest.raises(RadarGateError, match="no site 'nowhere'; its first is"):
        again.site("nowhere")


@pytest.mark.parametrize("options", [{"gate": "stretch"}, {"gate": "uniform"}])
def test_nothing_turned_means_the_same_before_and_after(zoo, load_tiny, options):
    trace = radargate.trace(compose(zoo, load_tiny(), **options), PROMPT, leave_one_out=False)
    for site in trace.sites():
        assert torch.equal(site.cosine_before, site.cosine_after) and torch.equal(site.map_before, site.map_after)
        assert (site.angles == 0).all() and (site.code_norms == 0).all()


@pytest.mark.parametrize(
    "options", [{"reference": "selected"}, {"rotation_sharing": "expert"}, {"rotation_input": "input"}]
)
def test_other_readings_of_the_rotation_are_traced(zoo, load_tiny, options):
    trace = radargate.trace(compose(zoo, load_tiny(), **options), PROMPT, leave_one_out=False)
    sites = [site for site in trace.sites() if len(site.experts) > 1]
    assert all((site.angles > 0).all() and not torch.equal(site.map_before, site.map_after) for site in sites)


def test_what_cannot_be_traced_says_so(zoo, load_tiny, tmp_path):
    model = compose(zoo, load_tiny())
    with pytest.raises(OptionError, match="holds no composition"):
        radargate.trace(build("llama"), [5, 6])
    for nothing in ("", [], torch.zeros(0, dtype=torch.long)):
        with pytest.raises(OptionError, match="no tokens"):
            radargate.trace(model, nothing)
    with pytest.raises(OptionError, match="one text"):
        radargate.trace(model, torch.ones(2, 3, dtype=torch.long))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(OptionError, match="not empty"):
        radargate.trace(model, [5, 6], out=tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "text", [None, "{", "[]", "{}", json.dumps({"schema": 1, "tokens": []}), json.dumps({"schema": 99})]
)
def test_a_broken_trace_says_what_to_do(tmp_path, text):
    if text is not None:
        (tmp_path / "trace.json").write_text(text)
    with pytest.raises(RadarGateError, match="holds no whole trace"):
        Trace(tmp_path)


def test_a_model_that_reads_no_text_asks_for_its_inputs_by_name(tmp_path):

    base = CASES["vit classifier"].build().eval()
    get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(tmp_path / "a")
    model = radargate.compose(CASES["vit classifier"].build(), {"a": tmp_path / "a"}, top_k=None)
    with pytest.raises(OptionError, match=r"reads pixel_values; give radargate.trace its inputs by name"):
        radargate.trace(model, "a text")
