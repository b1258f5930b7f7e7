"""What `fuzz` tries: for each reader of strangers' bytes, inputs that are near to sound ones and what reads them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st

from hostile_corpus import CONFIG, GOOD, SITES, WEIGHTS, good_tensors, packed, write_good


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        inputs: a strategy for what it is given.
        prepare: makes, from an empty folder, the function that reads one input.
    """

    inputs: st.SearchStrategy[Any]
    prepare: Callable[[Path], Callable[[Any], object]]


# what breaks readers: the ends of number types, other kinds, long and strange text
_SCALARS = st.one_of(
    st.sampled_from(
        [
            None,
            True,
            False,
            0,
            1,
            -1,
            2,
            10**9,
            1 << 35,
            1 << 63,
            -(1 << 63),
            1 << 64,
            10**400,
            0.5,
            1e30,
            1e308,
            float("nan"),
            float("inf"),
            "",
            "\ud800",
            "\x00",
            "\x1b[2J",
            "\n",
            "../..",
            "q_proj",
            "(a|a)*b",
            "(",
            ".*",
            "F32",
            "F64",
            "BF16",
            "radar",
            "mole",
            "uniform",
            "LORA",
            "RADAR",
            "default",
            "9" * 50,
        ]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "insert", "cut", "repeat", "end"]), st.floats(0, 1), st.binary(min_size=1, max_size=9)
    ),
    min_size=1,
    max_size=6,
)


def edited(raw: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """Bytes after a few edits at relative places."""
    for kind, where, piece in edits:
        at = int(where * len(raw))
        if kind == "flip":
            raw = (
                raw[:at]
                + bytes(a ^ b for a, b in zip(raw[at : at + len(piece)], piece, strict=False))
                + raw[at + len(piece) :]
            )
        elif kind == "insert":
            raw = raw[:at] + piece + raw[at:]
        elif kind == "cut":
            raw = raw[:at] + raw[at + 4 * len(piece) :]
        elif kind == "repeat":
            raw = raw[:at] + raw[at : at + 40] * len(piece) + raw[at:]
        else:
            raw = raw[:at]
    return raw


def changed(value: Any, path: list[int], new: Any) -> Any:
    """A JSON value with one part inside it, found by ``path``, replaced."""
    if not path or not isinstance(value, (dict, list)) or not value:
        return new
    if isinstance(value, list):
        at = path[0] % len(value)
        return [changed(v, path[1:], new) if i == at else v for i, v in enumerate(value)]
    key = list(value)[path[0] % len(value)]
    return {k: changed(v, path[1:], new) if k == key else v for k, v in value.items()}


def near(value: Any) -> st.SearchStrategy[Any]:
    """A JSON value with up to three parts replaced or added."""
    one = st.tuples(st.lists(st.integers(0, 40), min_size=1, max_size=4), _JSON)
    fields = st.dictionaries(st.sampled_from([*value, "x"]), _JSON, max_size=2)

    def apply(pair: Any) -> Any:
        changes, more = pair
        found = value
        for path, new in changes:
            found = changed(found, path, new)
        return {**found, **more} if isinstance(found, dict) else found

    return st.tuples(st.lists(one, max_size=2), fields).map(apply)


def _base() -> Any:
    """A base with the good adapter's layers, without weights."""
    import torch

    base = torch.nn.Module()
    for site, (d_in, d_out) in SITES.items():
        *parents, name = site.split(".")
        inner = base
        for parent in parents:
            inner.add_module(parent, inner._modules.get(parent) or torch.nn.Module())
            inner = inner.get_submodule(parent)
        inner.add_module(name, torch.nn.Linear(d_in, d_out, device="meta"))
    return base


def _adapter(folder: Path) -> Callable[[], None]:
    from radargate.experts.adapters import read_adapter
    from radargate.experts.fit import fit

    base = _base()

    def read() -> None:
        adapter = fit(read_adapter("fuzzed", folder), base)
        for site in adapter.sites:
            adapter.read(site)

    return read


def _weights(folder: Path) -> Callable[[Any], None]:
    read = _adapter(write_good(folder / "adapter"))
    sound = (folder / "adapter" / WEIGHTS).read_bytes()

    def one(edits: Any) -> None:
        (folder / "adapter" / WEIGHTS).write_bytes(edited(sound, edits))
        read()

    return one


_HEADER = json.loads(packed(good_tensors()).split(b"}}", 1)[0][8:] + b"}}")


def _header(folder: Path) -> Callable[[Any], None]:
    read = _adapter(write_good(folder / "adapter"))
    data = b"".join(raw for _, _, raw in good_tensors().values())

    def one(header: Any) -> None:
        raw = json.dumps(header).encode()
        (folder / "adapter" / WEIGHTS).write_bytes(len(raw).to_bytes(8, "little") + raw + data)
        read()

    return one


# what wrappers, trainers and other layouts put into names, at any place and any number of times
_WORDS = [
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "base_model.model",
    "default",
    "lora_A",
    "weight",
    "0",
    "x",
    "",
]
_RENAMED = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 9), st.sampled_from(_WORDS), st.booleans()), min_size=1, max_size=5
)


def renamed(names: list[str], edits: list[tuple[int, int, str, bool]]) -> list[str]:
    """Names with words put into them: into one, or into all."""
    for which, place, word, everywhere in edits:
        for index in range(len(names)) if everywhere else [which % len(names)]:
            parts = names[index].split(".")
            names[index] = ".".join([*parts[:place], word, *parts[place:]])
    return names


def _names(folder: Path) -> Callable[[Any], None]:
    read = _adapter(write_good(folder / "adapter"))
    sound = good_tensors()

    def one(edits: Any) -> None:
        tensors, targets = edits
        names = renamed(list(sound), tensors)
        (folder / "adapter" / WEIGHTS).write_bytes(packed(dict(zip(names, sound.values(), strict=True))))
        config = {**GOOD, "target_modules": renamed(list(SITES), targets)} if targets else GOOD
        (folder / "adapter" / CONFIG).write_text(json.dumps(config))
        read()

    return one


def _config(folder: Path) -> Callable[[Any], None]:
    read = _adapter(write_good(folder / "adapter"))

    def one(config: Any) -> None:
        (folder / "adapter" / CONFIG).write_text(json.dumps(config))
        read()

    return one


_FULL = {
    **GOOD,
    "rank_pattern": {"v_proj": 2},
    "alpha_pattern": {"q_proj": 8},
    "layers_to_transform": None,
    "layers_pattern": None,
    "exclude_modules": None,
    "auto_mapping": None,
    "init_lora_weights": True,
    "modules_to_save": None,
    "megatron_core": "megatron.core",
}
_ROW = {
    "prompt": "is 2 even?",
    "target": "(A)",
    "choices": ["yes", "no"],
    "answer_index": 0,
    "task": "even",
    "id": "1",
    "rationale": "",
    "metric": None,
}


def _rows(folder: Path) -> Callable[[Any], None]:
    from radargate.data.sources import load_rows

    sound = "".join(json.dumps(_ROW) + "\n" for _ in range(3)).encode()

    def one(value: Any) -> None:
        row, edits, packed_ = value
        raw = edited(sound, edits) if row is None else sound + json.dumps(row).encode() + b"\n"
        file = folder / ("t.jsonl.gz" if packed_ else "t.jsonl")
        file.write_bytes(
            edited(gzip.compress(raw, 1), edits)
            if packed_ and row is None
            else gzip.compress(raw, 1)
            if packed_
            else raw
        )
        load_rows(file, "test")

    return one


_ENTRY = {
    "experts": [0, 1],
    "ranks": [2, 3],
    "scales": [2.0, 1.5],
    "dtypes": [["F32", "F32"], ["F32", "BF16"]],
    "shape": [24, 24],
}
_BUNDLE = {
    "peft_type": "RADAR",
    "architecture": "mole",
    "architecture_options": {},
    "gate": "radar",
    "gate_options": {"rotation_rank": 4},
    "top_k": 2,
    "preset": None,
    "seed": 0,
    "experts": ["math", "law"],
    "expert_configs": {"math": GOOD, "law": GOOD},
    "expert_facts": {
        "math": {"source": "math", "sha256": "0" * 64, "prefix": "base_model.model."},
        "law": {"source": "law", "sha256": "1" * 64},
    },
    "sites": {next(iter(SITES)): _ENTRY},
    "base_fingerprint": "2" * 64,
    "gate_only": False,
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "tiny",
    "target_modules": None,
    "inference_mode": True,
}
_LOCK = {
    "lock": 1,
    "base": {"name": "tiny", "fingerprint": "2" * 64},
    "experts": {"math": {"source": "math", "sha256": "0" * 64}},
    "files": {CONFIG: "3" * 64, WEIGHTS: "4" * 64},
    "versions": {"torch": "2"},
    "python": "3.11",
}


def _bundle(folder: Path) -> Callable[[Any], None]:
    from radargate.composition.composing import read_config

    place = write_good(folder / "bundle")

    def one(config: Any) -> None:
        (place / CONFIG).write_text(json.dumps(config))
        read_config(place).adapter_facts()

    return one


def _lock(folder: Path) -> Callable[[Any], None]:
    from radargate.composition.bundle import LOCK_FILE, read_lock

    place = write_good(folder / "bundle")
    sound = json.dumps(_LOCK).encode()

    def one(value: Any) -> None:
        lock, edits = value
        (place / LOCK_FILE).write_bytes(edited(sound, edits) if lock is None else json.dumps(lock).encode())
        read_lock(place)

    return one


_BODY = {
    "model": "first",
    "prompt": "1+1=",
    "max_tokens": 4,
    "temperature": 0.5,
    "top_p": 0.9,
    "n": 1,
    "seed": 1,
    "stop": ["x"],
    "stream": False,
    "stream_options": {},
    "experts": {"math": 0.5},
    "logprobs": 2,
    "tools": [],
    "user": "x",
}
_CHAT = {
    "model": "first",
    "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}],
    "max_completion_tokens": 4,
    "logprobs": True,
    "top_logprobs": 2,
    "response_format": {"type": "text"},
}


def _body(folder: Path) -> Callable[[Any], None]:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from radargate.base_models.limits import Limits
    from radargate.server.loaded import LoadedBundles
    from radargate.server.requests import ChatBody, CompletionBody, read_request

    alphabet = {c: i + 2 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={"<pad>": 0, "</s>": 1, **alphabet}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    class Stub(LoadedBundles):
        """The server's readers over a tokenizer, without a model."""

        def __init__(self) -> None:
            self.names, self.limits = ["first"], Limits(258, 512)
            self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")

        def config(self, name: str) -> Any:
            return SimpleNamespace(experts=["math", "law"])

    bundles = Stub()

    def one(value: Any) -> None:
        endpoint, fields, edits = value
        raw = json.dumps(fields).encode()
        model = ChatBody if endpoint == "chat" else CompletionBody
        read_request(edited(raw, edits) if edits else raw, model, bundles, 64)

    return one


TARGETS = {
    "weights": Target(_EDITS, _weights),
    "header": Target(near(_HEADER), _header),
    "names": Target(st.tuples(_RENAMED, st.just([]) | _RENAMED), _names),
    "config": Target(near(_FULL), _config),
    "rows": Target(st.tuples(st.none() | near(_ROW), _EDITS, st.booleans()), _rows),
    "bundle": Target(near(_BUNDLE), _bundle),
    "lock": Target(st.tuples(st.none() | near(_LOCK), _EDITS), _lock),
    "bodies": Target(
        st.one_of(
            st.tuples(st.just("completions"), near(_BODY), st.just([]) | _EDITS),
            st.tuples(st.just("chat"), near(_CHAT), st.just([]) | _EDITS),
        ),
        _body,
    ),
}
