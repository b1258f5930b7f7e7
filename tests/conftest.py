"""Tiny real models built in code, with tokenizers and adapters made by PEFT: no network, no downloads."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import shutil
import subprocess
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import sweeps
from radargate.composition.config import gate_class
from radargate.gates.base import make_options
from radargate.gates.call_state import current

torch.set_num_threads(1)
HANG = 900  # seconds that nothing takes but a hang, however busy the machine
LONG = (
    "test_experiment",
    "test_real",
    "test_triton",
    "test_compare",
    "test_quickstart",
    "test_scale",
    "test_serve_process",
    "test_processes",
    "test_fused",
    "test_bench",
    "test_compare_report",
    "test_evaluation",
    "test_docs",
)
FAMILIES = ("llama", "gpt2", "t5")
# targets of three experts, so that sites with 1, 2 and 3 experts occur
TARGETS = {
    "llama": (["q_proj", "v_proj"], ["q_proj", "v_proj", "down_proj"], ["q_proj"]),
    "gpt2": (["c_attn", "attn.c_proj"], ["c_attn", "attn.c_proj", "c_fc"], ["c_attn"]),
    "t5": (["q", "v"], ["q", "v", "wo"], ["q"]),
}
RANKS, ALPHAS, RSLORA = (4, 8, 3), (16, 16, 8), (False, False, True)
# options that a gate or rule cannot do without, on the adapters of the zoo
NEEDED = {
    "single": {"expert": "law"},
    "select": {"examples": {"math": [[10, 11]], "law": [[40, 41, 42]], "code": [[90, 91]]}},
}


@contextlib.contextmanager
def logged(take=lambda line: None):
    """Hand each line that the package logs inside the block to ``take``."""
    handler, package = logging.Handler(), logging.getLogger("radargate")
    handler.emit = lambda record: take(record.getMessage())
    before = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(before)


def pytest_addoption(parser) -> None:
    parser.addoption("--all", action="store_true", help="whole sweeps, of which a part is taken otherwise")


def pytest_configure(config) -> None:
    sweeps.everything = config.getoption("--all")


def pytest_collection_modifyitems(items) -> None:
    """Long files come first, so that at the end no process waits for another that has just begun one."""
    if not sweeps.everything:
        for item in items:
            if item.get_closest_marker("whole"):
                item.add_marker(pytest.mark.skip(reason="only with --all"))
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_collection_finish(session) -> None:
    """Training collects garbage at its end, which takes long where all of torch is looked through each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config) -> None:
    gc.unfreeze()  # Triton looks at the end whether all of it has gone


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, with pad and end tokens and no chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "</s>": 1, **{c: i + 2 for i, c in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def build(family: str) -> torch.nn.Module:
    """A random model of a family, 2 layers, width 24 to 36."""
    torch.manual_seed(0)
    if family == "llama":
        config = LlamaConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=258,
            eos_token_id=1,
            pad_token_id=0,
            bos_token_id=None,
            max_position_embeddings=512,
        )
        return LlamaForCausalLM(config)
    if family == "gpt2":
        config = GPT2Config(
            n_embd=24,
            n_layer=2,
            n_head=2,
            n_positions=512,
            vocab_size=258,
            eos_token_id=1,
            bos_token_id=None,
            pad_token_id=0,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
        )
        return GPT2LMHeadModel(config)
    config = T5Config(
        d_model=24,
        d_kv=6,
        d_ff=40,
        num_layers=2,
        num_heads=4,
        vocab_size=258,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def make_adapter(model_path: Path, folder: Path, seed: int, **config) -> Path:
    """Save a LoRA adapter with random B through PEFT."""
    seq2seq = any(kind in str(model_path) for kind in ("t5", "bart"))
    auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    torch.manual_seed(seed)
    model = get_peft_model(auto.from_pretrained(model_path), LoraConfig(**config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def no_call_stays_open():
    """What a call sets for its duration is gone when it ends, however it ends."""
    yield
    left, current.blocks = current.blocks, 0
    assert left == 0, "a call or a block of `radargate.using` was left open"


@pytest.fixture(scope="session")
def zoo(tmp_path_factory) -> dict[str, dict]:
    """family → base folder, three adapters of unequal ranks and targets, one with rsLoRA, and three of one rank."""
    root, made = tmp_path_factory.mktemp("zoo"), {}
    for family in FAMILIES:
        base = root / f"tiny-{family}"
        build(family).save_pretrained(base)
        tiny_tokenizer().save_pretrained(base)
        adapters = {}
        for i, name in enumerate(("math", "law", "code")):
            adapters[name] = make_adapter(
                base,
                root / f"{family}-{name}",
                seed=i + 1,
                r=RANKS[i],
                lora_alpha=ALPHAS[i],
                use_rslora=RSLORA[i],
                target_modules=TARGETS[family][i],
            )
        equal = {
            name: make_adapter(
                base,
                root / f"{family}-equal-{name}",
                seed=i + 11,
                r=4,
                lora_alpha=(16, 16, 8)[i],
                target_modules=TARGETS[family][i],
            )
            for i, name in enumerate(("math", "law", "code"))
        }
        made[family] = {"base": base, "adapters": adapters, "equal": equal}
    return made


@pytest.fixture(scope="session")
def same_sites(zoo, tmp_path_factory):
    """Four llama adapters of one rank and the same targets, as PEFT's own merges and arrow want them."""
    root = tmp_path_factory.mktemp("same")
    return {
        name: make_adapter(
            zoo["llama"]["base"],
            root / name,
            seed=i + 21,
            r=4,
            lora_alpha=(16, 16, 8, 12)[i],
            target_modules=["q_proj", "v_proj", "down_proj"],
        )
        for i, name in enumerate(("math", "law", "code", "general"))
    }


def adapters_for(tiny: dict, gate: str, options: dict | None = None) -> dict[str, Path]:
    """The zoo's adapters, of one rank where a gate or rule needs that."""
    kind = gate_class(gate)
    options = make_options(kind, kind.take({**NEEDED.get(gate, {}), **(options or {})})[0])
    return tiny["equal" if kind.needs_equal_ranks(options) else "adapters"]


@pytest.fixture
def load_tiny(zoo):
    """A function that loads a fresh tiny base model in evaluation mode."""

    def load(family: str = "llama", **kwargs) -> torch.nn.Module:
        auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
        return auto.from_pretrained(zoo[family]["base"], **kwargs).eval()

    return load


@pytest.fixture(scope="session")
def tasks(tmp_path_factory) -> Path:
    """A data folder with two tiny tasks: one multiple choice, one free answers."""
    folder = tmp_path_factory.mktemp("tasks")
    for split, count in (("train", 48), ("validation", 8), ("test", 12)):
        yes = [
            {
                "prompt": f"is {i} even?",
                "target": "yes" if i % 2 == 0 else "no",
                "choices": ["yes", "no"],
                "answer_index": i % 2,
                "task": "even",
            }
            for i in range(count)
        ]
        add = [{"prompt": f"{i}+1=", "target": str(i + 1)} for i in range(count)]
        for task, rows in (("even", yes), ("add", add)):
            (folder / f"{task}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class SmallDisk:
    """A file system of its own, of which all but a few bytes can be taken away."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.filler = folder, folder / "filler"

    def leave(self, free: int) -> None:
        """Fill it up until ``free`` bytes are left, in whole pages."""
        self.filler.unlink(missing_ok=True)
        room = shutil.disk_usage(self.folder).free
        with open(self.filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, room - free))
        assert shutil.disk_usage(self.folder).free <= free

    def remount(self, options: str) -> None:
        """Change the mount, to ``ro`` and such."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path):
    """A real file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system needs root")
    yield SmallDisk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)
