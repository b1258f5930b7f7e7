"""The cases of the hostile corpus; `hostile_corpus` has the tools they are made with."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

from hostile_corpus import (
    CONFIG,
    GOOD,
    SITES,
    WEIGHTS,
    Build,
    Case,
    config,
    config_bytes,
    good_tensors,
    one,
    packed,
    values,
    weights,
    with_header,
)

TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
NAME = "base_model.model.{}.lora_{}.weight"


class Mark:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.file), "w"))


def pickled(name: str, *, keep: bool = False, protocol: int = 4) -> Build:
    """A pickle in a file of this name; the real weights go, or are damaged where they are kept."""

    def build(folder: Path, mark: Path) -> None:
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-7]) if keep else (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(pickle.dumps(Mark(mark), protocol=protocol))

    return build


def torch_archive(folder: Path, mark: Path) -> None:
    """What torch.save writes, under a safetensors name."""
    with zipfile.ZipFile(folder / WEIGHTS, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Mark(mark)))


def archive(kind: str) -> Build:
    """The whole adapter as an archive, with a member that leads out of it."""

    def build(folder: Path, mark: Path) -> Path:
        file = folder.parent / f"adapter.{kind}"
        if kind == "zip":
            with zipfile.ZipFile(file, "w") as out:
                out.writestr("../executed", "x")
        else:
            with tarfile.open(file, "w:gz") as out:
                member = tarfile.TarInfo("../executed")
                member.size = 1
                out.addfile(member, io.BytesIO(b"x"))
        return file

    return build


def linked(name: str, target: str | None = None) -> Build:
    """A file of the adapter as a symbolic link out of its folder (by default to a sound copy there)."""

    def build(folder: Path, mark: Path) -> None:
        away = folder.parent / "elsewhere"
        (folder / name).rename(away)
        os.symlink(target or away, folder / name)

    return build


def hub_cache(folder: Path, mark: Path) -> Path:
    """The layout of the Hub's own cache, whose links are sound."""
    repository = folder.parent / "models--user--name"
    place = repository / "snapshots" / "abc"
    place.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / name).rename(repository / "blobs" / name[:9])
        os.symlink(f"../../blobs/{name[:9]}", place / name)
    return place


def pipe(folder: Path, mark: Path) -> None:
    """A config that never ends to be read."""
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


def directory(folder: Path, mark: Path) -> None:
    """A folder where the weights should be."""
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def slow(pattern: str, letter: str = "a") -> Build:
    """A pattern, and names made for it."""

    def build(folder: Path, mark: Path) -> None:
        config(target_modules=pattern, r=1)(folder, mark)
        data = struct.pack("<f", 1.0)
        names = [letter * 300 + f"{i}" for i in range(20)]
        tensors = {NAME.format(n, side): ("F32", [1, 1], data) for n in names for side in "AB"}
        (folder / WEIGHTS).write_bytes(packed(tensors))

    return build


def renamed(new: str) -> Build:
    """The sound adapter with its first layer under another name."""

    def build(folder: Path, mark: Path) -> None:
        first = next(iter(SITES))
        tensors = {name.replace(first, new): tensor for name, tensor in good_tensors().items()}
        config(target_modules=".*")(folder, mark)
        (folder / WEIGHTS).write_bytes(packed(tensors))

    return build


def other_width(folder: Path, mark: Path) -> None:
    """An adapter of a wider base."""
    (folder / WEIGHTS).write_bytes(packed(good_tensors(dict.fromkeys(SITES, (32, 32)))))


def nest(depth: int) -> bytes:
    """A list in a list in a list."""
    return b"[" * depth + b"]" * depth


def nested_field(depth: int) -> bytes:
    """A config with deep JSON in a field that changes nothing."""
    return (
        json.dumps({**GOOD, "eva_config": 0})
        .replace('"eva_config": 0', f'"eva_config": {nest(depth).decode()}')
        .encode()
    )


def json_with(field: str, value: str) -> bytes:
    """A config in which one value is written as no JSON library would write it."""
    return json.dumps({**GOOD, field: "@"}).replace('"@"', value).encode()


REFUSED = [
    # pickles and archives
    Case("pickle as safetensors", pickled(WEIGHTS), "pickle or zip archive under a safetensors name"),
    Case("old pickle as safetensors", pickled(WEIGHTS, protocol=0), "header of"),
    Case("torch archive as safetensors", torch_archive, "pickle or zip archive under a safetensors name"),
    Case("only a pickle", pickled("adapter_model.bin"), "pickled file, which can run code"),
    Case("only a .pt", pickled("adapter_model.pt"), "pickled file, which can run code"),
    Case("pickle beside damaged weights", pickled("adapter_model.bin", keep=True), "cut off or padded"),
    Case("zip archive", archive("zip"), "is a file, expected a folder"),
    Case("tar archive", archive("tar.gz"), "is a file, expected a folder"),
    # headers
    Case("empty weights", weights(b""), "cut off"),
    Case("header of 2^60 bytes", weights(struct.pack("<Q", 1 << 60) + b"{}"), "announces a header of"),
    Case(
        "header of 17 MB",
        weights(lambda: with_header(b"{" + b" " * (17 << 20) + b"}")),
        "announces a header of",
        bomb=True,
    ),
    Case("header beyond the file", weights(struct.pack("<Q", 1000) + b"{}"), "cut off inside its header"),
    Case("header not UTF-8", weights(with_header(b'{"\xff": 1}')), "not valid JSON"),
    Case("header not JSON", weights(with_header(b"{]")), "not valid JSON"),
    Case("header a list", weights(with_header(b"[]")), "not a table"),
    Case("header 100,000 deep", weights(with_header(b"[" * 100_000)), "not valid JSON"),
    Case("header 900 deep", weights(with_header(b'{"a": ' + nest(900) + b"}")), "not valid JSON"),
    Case(
        "header of 1.3 million keys",
        weights(lambda: with_header(b"{" + b",".join(b'"%d":0' % i for i in range(1_300_000)) + b"}")),
        "describes more than",
        bomb=True,
    ),
    Case(
        "header of 5 million lists",
        weights(lambda: with_header(b"[" + b"[]," * 5_000_000 + b"0]")),
        "describes more than",
        bomb=True,
    ),
    Case(
        "header of 4 million numbers",
        weights(lambda: with_header(b"[" + b"7.5," * 4_000_000 + b"0]")),
        "describes more than",
        bomb=True,
    ),
    Case("the same tensor twice", weights(with_header(b'{"a": 1, "a": 2}')), "stands twice"),
    Case("the same field twice", weights(with_header(b'{"a": {"dtype": "F32", "dtype": "F16"}}')), "stands twice"),
    Case("metadata that is no text", weights(lambda: packed(good_tensors(), depth={"a": 1})), "cannot be read"),
    Case(
        "a name of 9 million letters",
        weights(lambda: with_header({"x" * 9_000_000: TENSOR}, b"0000")),
        "9,000,000 characters",
        bomb=True,
    ),
    Case("no tensor", weights(with_header({})), "holds no tensor"),
    # ranges
    Case(
        "overlapping ranges", weights(with_header({"a": TENSOR, "b": TENSOR}, b"0000")), "starts at byte 0, expected 4"
    ),
    Case(
        "gap between ranges",
        weights(with_header({"a": TENSOR, "b": {**TENSOR, "data_offsets": [8, 12]}}, b"0" * 12)),
        "starts at byte 8, expected 4",
    ),
    Case("range too short", one(shape=[2]), "needs 8 bytes"),
    Case("range beyond the file", one(shape=[1000], span=[0, 4000]), "describes 4,000 bytes"),
    Case("range backwards", one(span=[4, 0]), "needs 4 bytes"),
    Case("range negative", one(span=[-4, 0]), "no valid data_offsets"),
    Case("range of booleans", one(shape=[], span=[False, True]), "no valid data_offsets"),
    Case("data behind the last tensor", one(data=b"0" * 99), "cut off or padded"),
    # shapes and dtypes
    Case("shape product overflows", one(shape=[1 << 35, 1 << 35]), "needs"),
    Case("shape product overflows to 0", one(shape=[1 << 32, 1 << 32, 1]), "needs"),
    Case("side of 2^64", one(shape=[1 << 64]), "up to 8 whole numbers"),
    Case("negative sides", one(shape=[-1, -1]), "up to 8 whole numbers"),
    Case("nine sides", one(shape=[1] * 9), "up to 8 whole numbers"),
    Case("side that is text", one(shape=["1"]), "up to 8 whole numbers"),
    Case("dtype unknown", one(dtype="F8_E4M3"), "dtype 'F8_E4M3'"),
    Case("dtype of integers", one(dtype="I32"), "dtype 'I32'"),
    Case("dtype a list", one(dtype=["F32"]), "dtype"),
    Case("dtype other than the bytes", one(dtype="F64"), "needs 8 bytes"),
    # values
    Case("NaN", values(float("nan")), "NaN or infinite"),
    Case("infinite", values(float("inf")), "NaN or infinite"),
    Case("1e30", values(1e30), "holds 1e"),
    Case("minus 1e30 in bfloat16", values(-1e30, "BF16"), "holds 1e|holds 9"),
    # rank and scale
    Case("r of 10^9", config(r=10**9), "r = 1000000000, expected a whole number"),
    Case("r zero", config(r=0), "r = 0"),
    Case("r negative", config(r=-2), "r = -2"),
    Case("r true", config(r=True), "r = True"),
    Case("r text", config(r="2"), "r = '2'"),
    Case("r with a point", config(r=2.5), "r = 2.5"),
    Case("r other than the weights", config(r=5), "says 5"),
    Case("r of 5,000 digits", config_bytes(json_with("r", "9" * 5000)), "not valid JSON|whole number"),
    Case("alpha NaN", config_bytes(json_with("lora_alpha", "NaN")), "lora_alpha = nan"),
    Case("alpha infinite", config_bytes(json_with("lora_alpha", "1e999")), "lora_alpha = inf"),
    Case("alpha of 400 digits", config_bytes(json_with("lora_alpha", "9" * 400)), "lora_alpha = 9"),
    Case("alpha 1e8", config(lora_alpha=1e8), "the scale 5e"),
    Case("alpha 0", config(lora_alpha=0), "changes nothing"),
    Case("rank_pattern 0", config(rank_pattern={"q_proj": 0}), r"rank_pattern\[q_proj\] = 0"),
    Case("rank_pattern a list", config(rank_pattern=["q_proj"]), "expected a table"),
    Case(
        "alpha_pattern NaN",
        config_bytes(json_with("alpha_pattern", '{"q_proj": NaN}')),
        r"alpha_pattern\[q_proj\] = nan",
    ),
    Case("use_rslora text", config(use_rslora="no"), "expected true or false"),
    # what a config would have others do
    Case(
        "auto_mapping imports",
        config(auto_mapping={"base_model_class": "X", "parent_library": "os"}),
        "auto_mapping names 'os'",
    ),
    Case(
        "auto_mapping a look-alike",
        config(auto_mapping={"parent_library": "transformers_evil.models"}),
        "auto_mapping names",
    ),
    Case("megatron_core imports", config(megatron_config={"a": 1}, megatron_core="evil"), "megatron_core names 'evil'"),
    Case("base at an address", config(base_model_name_or_path="https://example.org/model"), "is the address"),
    Case("base a list", config(base_model_name_or_path=["tiny"]), "expected text"),
    Case("wrong base", other_width, "maps 32 to 32"),
    Case("layer of another base", renamed("model.layers.9.self_attn.q_proj"), "are not linear layers"),
    Case("peft_type a list", config(peft_type=["LORA"]), "expected 'LORA'"),
    Case("DoRA", config(use_dora=True), "DoRA rescales the base weights"),
    Case("changes the base", config(init_lora_weights="pissa"), "changes the base weights"),
    Case("modules_to_save", config(modules_to_save=["lm_head"]), "replaces whole modules"),
    Case("field of the future", config(use_hyperlora=[[["x"]]]), "use_hyperlora"),
    Case("trust_remote_code", config(trust_remote_code=True), "trust_remote_code"),
    # patterns
    Case("repeat in a repeat", config(target_modules="(.*a+)+b"), "repeat inside a repeat"),
    Case("many repeats", slow(".*a.*a.*a.*a.*a.*a.*b"), "took over"),
    Case("the same twice under a star", slow("(?:a|aa)*b"), "took over"),
    Case("many optional letters", slow("a?" * 300 + "a" * 301 + "b"), "took over|does not name"),
    Case("repeat of bounded repeats", slow("(?:a{1,30}){1,30}b"), "took over"),
    Case("backreference", slow("(a*)*b|(a+)\\2+c"), "took over|repeat inside"),
    Case("pattern of 3,000 letters", config(target_modules="a" * 3000), "pattern of 3,000 characters"),
    Case("pattern broken", config(target_modules="(q_proj"), "not a valid pattern"),
    Case("pattern broken in rank_pattern", config(rank_pattern={"(": 2}), "not a valid pattern"),
    Case(
        "pattern excludes slowly",
        lambda f, m: (slow(".*")(f, m), config(target_modules=".*", r=1, exclude_modules="(?:a|aa)*b")(f, m))[0],
        "took over",
    ),
    Case(
        "layers_pattern names idx",
        config(layers_to_transform=[0], layers_pattern="(?P<idx>l)ayers"),
        "not a valid pattern",
    ),
    Case("layers_to_transform text", config(layers_to_transform="01"), "expected whole numbers"),
    Case("target_modules a number", config(target_modules=7), "neither text nor a list"),
    Case("target_modules of other layers", config(target_modules=["o_proj"]), "does not name"),
    # JSON
    Case("config 100,000 deep", config_bytes(b"[" * 100_000), "not valid JSON"),
    Case("config 900 deep", config_bytes(nested_field(900)), "not valid JSON"),
    Case("config 40 deep", config_bytes(nested_field(40)), "not valid JSON"),
    Case(
        "config of 2 MB",
        config_bytes(lambda: json.dumps({**GOOD, "x": " " * (2 << 20)}).encode()),
        "more than 1,048,576 bytes",
        bomb=True,
    ),
    Case("config with a key twice", config_bytes(b'{"r": 2, "r": 4}'), "stands twice"),
    Case("config not UTF-8", config_bytes(b'{"r": "\xff"}'), "not valid JSON"),
    Case("config a list", config_bytes(b"[]"), "expected a JSON object"),
    Case("config empty", config_bytes(b""), "not valid JSON"),
    # names
    Case("name with a line end", renamed("model\nadapter ok"), "expected only lora_A"),
    Case("name with terminal codes", renamed("\x1b[2J\x1b[31mok"), "are not linear layers"),
    Case("name with half a surrogate", renamed("\ud800"), "are not linear layers|cannot be read|not valid"),
    Case("name with a way up", renamed("../../../etc/passwd"), "are not linear layers"),
    Case(
        "layer twice under two prefixes",
        lambda f, m: weights(
            packed(
                {
                    **good_tensors(),
                    **{n.removeprefix("base_model.model."): t for n, t in list(good_tensors().items())[:2]},
                }
            )
        )(f, m),
        "twice",
    ),
    # ways out of the folder
    Case("config links away", linked(CONFIG), "symbolic link out of its folder"),
    Case("weights link away", linked(WEIGHTS), "symbolic link out of its folder"),
    Case("config links to /etc/passwd", linked(CONFIG, "/etc/passwd"), "symbolic link out of its folder"),
    Case("config links to /dev/zero", linked(CONFIG, "/dev/zero"), "does not exist"),
    Case("config links to itself", linked(CONFIG, CONFIG), "does not exist|leads nowhere"),
    Case("config a pipe", pipe, "does not exist"),
    Case("weights a folder", directory, "has no adapter_model.safetensors"),
    Case("address", lambda f, m: "https://example.org/user/name", "does not exist. Give a folder or a Hub id"),
    Case("address of a Hub", lambda f, m: "hf://user/name", "does not exist. Give a folder or a Hub id"),
    Case("Hub id with a way up", lambda f, m: "user/..", "neither a folder nor a Hub adapter"),
    Case("Hub id with a revision", lambda f, m: "user/name@refs/pr/1", "does not exist. Give a folder or a Hub id"),
    Case("network share", lambda f, m: "//host/share/adapter", "does not exist. Give a folder or a Hub id"),
]
ACCEPTED = [
    Case("sound", lambda f, m: None, None),
    Case("sound, names another base", config(base_model_name_or_path="../../somewhere/else", revision="main"), None),
    Case(
        "sound, made without a task",
        config(
            auto_mapping={
                "base_model_class": "LlamaForCausalLM",
                "parent_library": "transformers.models.llama.modeling_llama",
            },
            task_type=None,
        ),
        None,
    ),
    Case(
        "sound, with a real pattern",
        config(
            target_modules=r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:q_proj|v_proj))"
        ),
        None,
    ),
    Case("sound, in the Hub's cache", hub_cache, None),
]
CASES = [*ACCEPTED, *REFUSED]
