"""One prompt after the other through transformers, all at once through vLLM, and how far apart the answers are."""

from __future__ import annotations

import gc
import os
import random

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="WARNING",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
)

import torch
from transformers import AutoModelForCausalLM

import radargate

TOKENS = 80
Answers = list[tuple[list[int], list[float]]]  # token ids, and the log-probability of each


def prompts(vocabulary: int = 258) -> list[list[int]]:
    """Nine, of 5 to 320 tokens; four of them begin with the same 150 or 300."""
    draw = random.Random(0)

    def text(length: int) -> list[int]:
        return [draw.randrange(2, vocabulary) for _ in range(length)]

    shared = text(300)
    return [*map(text, (5, 17, 40, 90, 200)), shared, [*shared, 5, 6, 7], shared + [100] * 20, shared[:150] + [44] * 9]


def with_transformers(base, bundle=None, asked=None, tokens: int = TOKENS) -> Answers:
    """Greedy answers of the product's own path, in float32."""
    if bundle is None:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    else:
        model = radargate.load(str(base), str(bundle), dtype="float32")
    found = []
    for prompt in asked or prompts():
        ids = torch.tensor([prompt])
        with torch.no_grad():
            out = model.eval().generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, eos_token_id=None,
                pad_token_id=0, return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        chosen = out.sequences[0, len(prompt) :].tolist()
        logits = zip(out.logits, chosen, strict=True)
        found.append((chosen, [float(step[0].float().log_softmax(-1)[token]) for step, token in logits]))
    return found


def engine(base, bundle=None, **options):
    """vLLM in this process, in float32, eager unless said otherwise."""
    from vllm import LLM

    served = (
        {} if bundle is None else {"load_format": "radargate", "model_loader_extra_config": {"bundle": str(bundle)}}
    )
    usual = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 16,
        "disable_log_stats": True,
    }
    return LLM(model=str(base), **{**usual, **served, **options})


def with_vllm(running, asked=None, tokens: int = TOKENS, **sampling) -> Answers:
    """Greedy answers of vLLM to all prompts at once."""
    from vllm import SamplingParams

    how = SamplingParams(**{"temperature": 0, "max_tokens": tokens, "ignore_eos": True, "logprobs": 0, **sampling})
    asked = [{"prompt_token_ids": prompt} for prompt in asked or prompts()]
    answers = [request.outputs[0] for request in running.generate(asked, how, use_tqdm=False)]
    return [
        (list(a.token_ids), [step[token].logprob for token, step in zip(a.token_ids, a.logprobs, strict=True)])
        for a in answers
    ]


def close(running) -> None:
    """Let an engine's memory go."""
    running.llm_engine.engine_core.shutdown()
    del running
    gc.collect()


def assert_same(found: Answers, expected: Answers, tolerance: float = 1e-4) -> None:
    """The same tokens, and log-probabilities that are as near as rounding leaves them."""
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    assert largest_difference(found, expected) < tolerance


def largest_difference(found: Answers, expected: Answers) -> float:
    """Of a token's log-probability."""
    return max(abs(a - b) for x, y in zip(found, expected, strict=True) for a, b in zip(x[1], y[1], strict=True))
