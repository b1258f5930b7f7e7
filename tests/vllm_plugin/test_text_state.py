"""A router's state in N + 1 numbers is what the router itself says, however a text is cut into steps and shared between requests."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from radargate.gates.router.router import TextRouter
from radargate.gates.router.running_text import summed
from radargate.vllm.model_state import RequestText
from radargate.vllm.slots import SlotText
from radargate.vllm.text import StepText, TextSums

EXPERTS, WIDTH, VOCABULARY, BLOCK = 3, 8, 50, 4


@pytest.fixture
def router():
    torch.manual_seed(0)
    made = TextRouter(EXPERTS, WIDTH)
    with torch.no_grad():
        made.softmax_router.normal_(std=3)
        made.text_mean.normal_(std=0.1)
        made.text_spread.fill_(0.2)
    return made.eval()


@pytest.fixture
def embedding():
    torch.manual_seed(1)
    return torch.randn(VOCABULARY, WIDTH)


@pytest.fixture
def step(router, embedding):
    return StepText(TextSums(router, embedding, torch.device("cpu")), 64, torch.device("cpu"))


def said(router, embedding, ids):
    """What the router says after each token of a text, in float64."""
    with torch.no_grad():
        return router.double()(summed(embedding[torch.tensor([ids])]).double())[0].float()


def test_sums_of_rows_are_the_routers_own_words(router, embedding, step):
    ids = list(range(40))
    found = step.sums.log_weights(step.sums.rows(torch.tensor(ids)).cumsum(0))
    torch.testing.assert_close(found, said(router, embedding, ids), atol=1e-5, rtol=0)
    torch.testing.assert_close(step.sums.log_weights(step.sums.of_text(ids)), found[-1], atol=1e-5, rtol=0)


class Cache:
    """Blocks of slots handed out as vLLM does: those of a whole block of tokens are shared by all texts that begin so."""

    def __init__(self) -> None:
        self.shared: dict[tuple[int, ...], int] = {}
        self.taken = 3  # numbers need not begin at 0

    def blocks(self, ids: list[int]) -> list[int]:
        found = []
        for end in range(BLOCK, len(ids) + BLOCK, BLOCK):
            key = tuple(ids[:end])
            if end > len(ids) or key not in self.shared:
                self.taken += 1
                self.shared.setdefault(key if end <= len(ids) else (-self.taken,), self.taken)
                found.append(self.taken)
            else:
                found.append(self.shared[key])
        return found


def read(text: SlotText, parts: list[tuple[list[int], int, int, list[int]]]) -> torch.Tensor:
    """One step: of each text (ids, from, to, blocks) the tokens in between."""
    ids = torch.tensor([token for whole, start, end, _ in parts for token in whole[start:end]])
    places = [blocks[p // BLOCK] * BLOCK + p % BLOCK for _, start, end, blocks in parts for p in range(start, end)]
    starts = torch.tensor([0, *torch.tensor([end - start for _, start, end, _ in parts]).cumsum(0).tolist()])
    longest = max(len(blocks) for *_, blocks in parts)
    table = torch.tensor([blocks + [0] * (longest - len(blocks)) for *_, blocks in parts])
    lengths = torch.tensor([end for _, _, end, _ in parts])
    sums = text.read(ids, starts, lengths, table, torch.tensor(places), BLOCK)
    return text.step.sums.log_weights(sums)


def test_two_texts_of_one_beginning_in_the_same_step(router, embedding, step):
    """The second continues blocks that the first fills only now."""
    text, cache = SlotText(step, False), Cache()
    first, second = [1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8, 40, 41]
    blocks = cache.blocks(first)
    later = [*blocks[:2], 77]
    found = read(text, [(second, 8, 10, later), (first, 0, 9, blocks)])  # the later one stands first in the batch
    torch.testing.assert_close(found[:2], said(router, embedding, second)[8:], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[2:], said(router, embedding, first), atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_any_cuts_shared_blocks_and_new_beginnings(router, embedding, step, seed):
    draw, text, cache = random.Random(seed), SlotText(step, False), Cache()
    shared = [draw.randrange(VOCABULARY) for _ in range(21)]
    texts = [shared[: draw.randrange(4, 21)] + [draw.randrange(VOCABULARY) for _ in range(9)] for _ in range(6)]
    read_to, blocks, known = [0] * len(texts), [[]] * len(texts), set()
    while any(done < len(ids) for done, ids in zip(read_to, texts, strict=True)):
        parts, who = [], []
        for i in draw.sample(range(len(texts)), 3):
            if read_to[i] == len(texts[i]):
                continue
            if not read_to[i]:  # hits whole blocks that somebody filled, or fills in this step
                blocks[i] = cache.blocks(texts[i])
                while read_to[i] + BLOCK < len(texts[i]) and tuple(texts[i][: read_to[i] + BLOCK]) in known:
                    read_to[i] += BLOCK
            end = min(len(texts[i]), read_to[i] + draw.randrange(1, 9))
            parts.append((texts[i], read_to[i], end, blocks[i]))
            who.append(i)
            known |= {tuple(texts[i][:n]) for n in range(BLOCK, end + 1, BLOCK)}
            if draw.random() < 0.2:  # preempted after this step: it begins again
                read_to[i] = 0
            else:
                read_to[i] = end
        found = read(text, parts) if parts else None
        place = 0
        for ids, start, end, _ in parts:
            expected = said(router, embedding, ids)[start:end]
            torch.testing.assert_close(found[place : place + end - start], expected, atol=1e-5, rtol=0)
            place += end - start


def test_by_request_as_the_new_model_runner_has_it(router, embedding, step):
    text = RequestText(step, requests=4, prompts=False)
    texts = {2: list(range(20)), 0: list(range(30, 49))}
    text.begin(2, texts[2], texts[2], 0)
    text.begin(0, texts[0], texts[0], 8)  # its first 8 came from the prefix cache
    done = {2: 0, 0: 8}
    for lengths in ({2: 5, 0: 1}, {0: 7}, {2: 1, 0: 3}, {2: 14}):
        ids = torch.tensor([t for place, n in lengths.items() for t in texts[place][done[place] : done[place] + n]])
        starts = torch.tensor([0, *torch.tensor(list(lengths.values())).cumsum(0).tolist()], dtype=torch.int32)
        text.read(ids, starts, torch.tensor(list(lengths), dtype=torch.int32), len(ids) + 2)
        found, place = step.log_weights(router), 0
        assert found.shape[0] == len(ids) + 2, "padding has rows too"
        for request, n in lengths.items():
            expected = said(router, embedding, texts[request])[done[request] : done[request] + n]
            torch.testing.assert_close(found[place : place + n], expected, atol=1e-5, rtol=0)
            place, done[request] = place + n, done[request] + n
    text.begin(2, texts[2][:10], texts[2], 15)  # preempted, and back with what it had said
    text.read(torch.tensor(texts[2][15:]), torch.tensor([0, 5]), torch.tensor([2]), 5)
    torch.testing.assert_close(step.log_weights(router), said(router, embedding, texts[2])[15:], atol=1e-5, rtol=0)


def test_a_prompts_decision_holds_for_all_of_its_request(router, embedding, step):
    text = RequestText(step, requests=2, prompts=True)
    text.begin(1, [4, 5, 6], [4, 5, 6, 9, 9], 3)
    text.read(torch.tensor([9, 9]), torch.tensor([0, 2]), torch.tensor([1]), 2)
    expected = said(router, embedding, [4, 5, 6])[-1].expand(2, -1)
    torch.testing.assert_close(step.log_weights(router), expected, atol=1e-5, rtol=0)


def test_attention_that_keeps_no_slots_is_said():
    from radargate.errors import RadarGateError
    from radargate.vllm.slots import _batch

    with pytest.raises(RadarGateError, match="does not say where its keys and values go"):
        _batch({"layer": SimpleNamespace(state=1)})
