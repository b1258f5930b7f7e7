"""Text told token by token is the text of all tokens, for every kind of decoder, and takes work in proportion to them."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from radargate.server import decoder as decoder_module
from radargate.server.decoder import Decoder
from radargate.server.text import Writer

TEXT = "the history of a city, don't say it isn't! we've 'quoted' a.b . c ? naïve café 你好 😀😀🎉 👩‍👩‍👧 x   y\n\nz"
BYTES = [f"<0x{i:02X}>" for i in range(256)]
LETTERS = sorted(set(TEXT) - set("😀🎉你 "))
WORDS = [
    "[UNK]",
    "[PAD]",
    "n",
    "'",
    "t",
    "##t",
    "##ing",
    "go",
    "m",
    "s",
    "ve",
    "re",
    ".",
    "!",
    "?",
    ",",
    "##.",
    "n't",
    "'s",
    "v",
    "##e",
    "r",
    "do",
    "not",
    "##n",
    "##'",
]


def byte_level():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<pad>", "</s>"], show_progress=False)  # fmt: skip
    backend.train_from_iterator([TEXT] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")


def unigram():
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((b, -9.0) for b in BYTES), *((c, -3.0) for c in LETTERS)]
    pieces += [(word, -2.0) for word in ("▁", "▁the", "▁a", "ing", "'s", "▁▁")]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def sentence_pieces():
    names = ["<unk>", "<s>", "</s>", *BYTES, "▁", *LETTERS, "▁the", "▁▁"]
    backend = Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_pieces(clean):
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]",
                                   clean_up_tokenization_spaces=clean)  # fmt: skip


TOKENIZERS = {
    "byte-level": byte_level, "unigram": unigram, "sentence pieces": sentence_pieces,
    "word pieces": lambda: word_pieces(False), "cleaned word pieces": lambda: word_pieces(True), "without a backend": ByT5Tokenizer,
}  # fmt: skip


def some_ids(tokenizer, rng, size):
    """Any tokens, also ones that do not exist, runs of one, and encoded text."""
    ids = []
    while len(ids) < size:
        kind = rng.random()
        if kind < 0.3:
            ids.append(rng.randrange(len(tokenizer) + 2 * tokenizer.is_fast))
        elif kind < 0.4:
            ids += [rng.randrange(len(tokenizer))] * rng.randrange(1, 40)
        else:
            start = rng.randrange(len(TEXT))
            ids += tokenizer.encode(TEXT[start : start + rng.randrange(1, 20)], add_special_tokens=False)
    return ids[:size]


def whole_characters(tokenizer, ids):
    """Whether byte tokens that follow each other are characters."""
    names = [name for name in tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True) if name]
    text = "".join(chr(BYTES.index(name)) if name in BYTES else "  " for name in names)
    try:
        return text.encode("latin-1").decode() is not None
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_pieces_are_the_text_of_all_tokens(kind):
    tokenizer, rng, compared = TOKENIZERS[kind](), random.Random(0), 0
    for _ in range(80):
        ids = some_ids(tokenizer, rng, rng.randrange(1, 100))
        decoder = Decoder(tokenizer)
        told = "".join(map(decoder.add, ids)) + decoder.finish()
        if whole_characters(tokenizer, ids):
            compared += 1
            assert told == tokenizer.decode(ids, skip_special_tokens=True)
    assert compared > 20


def test_characters_are_told_as_soon_as_they_are_whole():
    tokenizer = sentence_pieces()
    decoder = Decoder(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(
        ["▁the", "</s>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0xF0>", "a", "▁", "a"]
    )
    assert [decoder.add(i) for i in ids] == ["the", "", "", "", "", "😀", "", "\ufffda", " ", "a"], (
        "nothing is taken back"
    )


def test_marks_that_are_in_the_text_are_told():
    tokenizer = byte_level()
    for count in (1, 5, 60):
        text = "a" + "\ufffd" * count
        decoder = Decoder(tokenizer)
        assert "".join(map(decoder.add, tokenizer.encode(text))) + decoder.finish() == text


def test_cleaned_up_spaces_wait_for_what_follows():
    tokenizer = word_pieces(True)
    decoder = Decoder(tokenizer)
    words = ["go", "'", "go", ".", "do", "n", "##'", "##t", "'"]
    pieces = [decoder.add(i) for i in tokenizer.convert_tokens_to_ids(words)]
    assert pieces == ["go", "", "'go", ".", " do", "", "", "n't", ""] and decoder.finish() == " '"


@pytest.mark.parametrize("text", ["the city " * 99, "😀" * 99, "\ufffd" * 99, None])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_each_token_is_decoded_a_few_times_only(kind, text, monkeypatch):
    tokenizer, counted = TOKENIZERS[kind](), []
    make = decoder_module._backend

    def counting(tokenizer):
        decode, *more = make(tokenizer)
        return (lambda ids: counted.append(len(ids)) or decode(ids), *more)

    monkeypatch.setattr(decoder_module, "_backend", counting)
    one = tokenizer.eos_token_id or tokenizer.pad_token_id
    ids = tokenizer.encode(text, add_special_tokens=False) if text else [one] * 400
    decoder = Decoder(tokenizer)
    for token in ids:
        decoder.add(token)
    assert sum(counted) < 50 * len(ids)


@pytest.mark.parametrize("kind", ["byte-level", "unigram", "sentence pieces"])
def test_stops_are_found_across_tokens_and_only_whole(kind):
    tokenizer, rng = TOKENIZERS[kind](), random.Random(1)
    ids = tokenizer.encode("the history of a city the histories", add_special_tokens=False)
    whole = tokenizer.decode(ids)
    for _ in range(60):
        at, size = rng.randrange(len(whole)), rng.randrange(1, 12)
        stops = [whole[at : at + size], "zebra", whole[at : at + 3] + "#"]
        writer, told = Writer(tokenizer, stops), ""
        for token in ids:
            begins = len(told) + len(writer._held)
            told += writer.add(token)
            assert writer.told == len(told) and writer.starts[-1] == begins
            if writer.stopped:
                break
        told += writer.finish()
        assert told == whole[: whole.find(stops[0])] and writer.stopped


def test_a_stop_among_what_is_told_last_is_kept_back():
    tokenizer = byte_level()
    writer = Writer(tokenizer, ["\ufffd"])
    assert "".join(map(writer.add, tokenizer.encode("a\ufffd"))) == "a"
    assert writer.finish() == "" and writer.stopped
