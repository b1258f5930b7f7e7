"""Talking to a bundle through a pipe, as a script or test does."""

from __future__ import annotations

import io
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

import radargate
from radargate.base_models.loading import load_tokenizer
from radargate.cli import main
from radargate.composition.composing import radar_layers
from radargate.evaluation.scoring import generate

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


@pytest.fixture(scope="module")
def bundle(zoo, tmp_path_factory):
    """A composition over a base whose tokenizer has a chat template, by its folder."""
    root = tmp_path_factory.mktemp("chat")
    base = root / "base"
    plain = AutoModelForCausalLM.from_pretrained(zoo["llama"]["base"])
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)  # so that what was said before changes the answer
    plain.save_pretrained(base)
    tokenizer = load_tokenizer(str(zoo["llama"]["base"]))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    model = radargate.compose(str(base), zoo["llama"]["adapters"], top_k=2)
    model.save_pretrained(root / "bundle")
    return root / "bundle"


@pytest.fixture
def say(bundle, monkeypatch, capsys):
    """Runs a conversation of these lines; gives output and errors."""

    def run(*lines, flags=()):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        code = main(["chat", str(bundle), "--max-new-tokens", "8", *flags])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_an_answer_is_that_of_generate_and_the_next_turn_knows_it(say, bundle):
    model = radargate.load(None, bundle)
    tokenizer = load_tokenizer(model.get_base_model())

    def answer(context):
        ids = torch.tensor([tokenizer.encode(context)])
        with radargate.using(model, {}):
            made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)

    first = answer("user: hi\nassistant: ")
    assert first.strip() == generate(model, tokenizer, ["hi"], max_new_tokens=8)[0]
    second = answer(f"user: hi\nassistant: {first}\nuser: hi\nassistant: ")
    assert first != second
    code, out, _ = say("hi", "hi", "/reset", "hi")
    assert code == 0 and out == f"{first}\n{second}\nThe conversation starts over.\n{first}\n"


def test_experts_are_listed_switched_and_explained(say, bundle):
    code, out, err = say(
        "/why", "/experts", "/experts lwa=0", "/experts law=0", "hi", "/why", "/help", "/whi", "", "/experts law=x"
    )
    assert code == 0
    assert "there is no answer yet" in err and "Did you mean 'law'" in err and "Did you mean '/why'" in err
    assert "factor 'x'" in err
    assert len(re.findall(r"^law +1$", out, re.M)) == 1 and len(re.findall(r"^law +0$", out, re.M)) == 1
    table = dict(re.findall(r"^(\w+) +(\d\.\d{3}) +\d+% +\d+$", out, re.M))
    assert set(table) == {"math", "law", "code"} and float(table["law"]) == 0
    config_sites = radar_layers(radargate.load(None, bundle))
    assert re.search(rf"^math .* {sum('math' in site_experts(layer) for layer in config_sites)}$", out, re.M)


def test_a_factor_that_cannot_be_read_ends_no_conversation(say):
    code, out, err = say("/experts law=[", "/experts law=2026-13-45", "/experts law", "/experts law=0")
    assert code == 0 and re.search(r"^law +0$", out, re.M)
    assert "/experts law=[: the value cannot be read" in err and "/experts law=2026-13-45: the value" in err
    assert "/experts law: expected NAME=VALUE, such as math=0" in err
    assert "--expert law: expected NAME=VALUE" in say(flags=("--expert", "law"))[2]


def site_experts(layer):
    config, entry = layer.entries["default"]
    return [config.experts[i] for i in entry["experts"]]


def test_sampling_repeats_with_its_seed_and_flags_are_checked(say):
    sampled = ("--temperature", "1.5", "--seed", "4", "--expert", "law=0", "--system", "be brief")
    assert say("hi", flags=sampled)[1] == say("hi", flags=sampled)[1] != say("hi", flags=(*sampled, "--seed", "5"))[1]
    assert "expected at least 0" in say(flags=("--top-p", "0"))[2]
    assert "Did you mean 'law'" in say(flags=("--expert", "lwa=0"))[2]
    assert "/reset starts over" in say("x" * 600, "hi")[2]
