"""The text's state for each request, for vLLM's V2 model runner (GPUs): its own ``ModelState``, which sees requests come and go.

Not run on a GPU by us: tests drive it with vLLM's own objects on a CPU (docs/vllm.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from radargate.vllm.text import StepText


class RequestText:
    """What was read of each running request, [requests, N + 1].

    Args:
        step: where layers look.
        requests: the most that run at once.
        prompts: whether each request's prompt decides, once.
    """

    def __init__(self, step: StepText, requests: int, prompts: bool) -> None:
        self.step, self.prompts = step, prompts
        self.sums = torch.zeros(requests, step.sums.experts + 1, dtype=torch.float64, device=step.said.device)

    def begin(self, place: int, prompt: list[int], tokens: list[int], computed: int) -> None:
        """A request came, or came back: of its ``tokens`` the first ``computed`` have keys and values already."""
        self.sums[place] = self.step.sums.of_text(prompt if self.prompts else tokens[:computed])

    def read(self, ids: Tensor, starts: Tensor, places: Tensor, padded: int) -> None:
        """Take a step's tokens, and say what the router thinks of each; nothing here waits for a GPU.

        Args:
            ids: [tokens].
            starts: [requests + 1], where each request's tokens begin.
            places: [requests], of the requests here.
            padded: tokens of the step with padding.
        """
        owner = torch.searchsorted(starts[1:].contiguous(), torch.arange(len(ids), device=ids.device), right=True)
        before = self.sums[places.long()]
        if self.prompts:
            self.step.say(self.step.sums.log_weights(before)[owner], padded)
            return
        whole = self.step.sums.rows(ids).cumsum(0)
        begun = torch.cat([whole.new_zeros(1, whole.shape[1]), whole])[starts.long()]  # at each request's first token
        sums = whole - begun[owner] + before[owner]
        self.sums[places.long()] = before + begun[1:] - begun[:-1]
        self.step.say(self.step.sums.log_weights(sums), padded)


def state_class(base: Any, step: StepText, prompts: bool) -> Any:
    """vLLM's state of a model, which also reads the text."""

    class ReadsText(base):
        supports_prompt_embeds = False

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.text = RequestText(step, self.max_num_reqs, prompts)

        def add_request(self, req_index: int, new_req_data: Any) -> None:
            super().add_request(req_index, new_req_data)
            prompt = list(new_req_data.prompt_token_ids)
            tokens = list(new_req_data.prefill_token_ids or prompt)
            self.text.begin(req_index, prompt, tokens, new_req_data.num_computed_tokens)

        def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
            found: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
            batch, tokens = input_batch, input_batch.num_tokens
            starts = batch.query_start_loc[: batch.num_reqs + 1]
            places = batch.idx_mapping[: batch.num_reqs]
            self.text.read(batch.input_ids[:tokens], starts, places, batch.num_tokens_after_padding)
            return found

        def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
            step.count = num_tokens
            found: dict[str, Any] = super().prepare_dummy_inputs(num_reqs, num_tokens)
            return found

    return ReadsText
