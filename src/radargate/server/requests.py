"""Requests for answers: every field is checked, and what cannot be honoured is refused, never skipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import Field, ValidationInfo, model_validator

from radargate.errors import RadarGateError
from radargate.registry import unknown_name
from radargate.server import neutral
from radargate.server.bodies import ApiError, Body, parse
from radargate.server.jobs import Group
from radargate.server.loaded import LoadedBundles
from radargate.server.sampling import Sampling

MAX_ANSWERS = 64


def _from(low: int, high: int, default: float | None, kind: str = "a whole number") -> Any:
    return Field(default, ge=low, le=high, description=f"{kind} from {low} to {high}")


Flag = Annotated[bool, Field(description="true or false")]
Whole = Annotated[int | None, Field(description="a whole number")]
Ids = Annotated[list[int], Field(fail_fast=True, description="token ids")]
SomeIds = Annotated[Ids, Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"] = Field("text", description="'text': this model reads nothing else")
    text: str = Field(description="text")
    neutral = neutral.PART
    within = "messages"


class Message(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="system, user or assistant")
    content: list[TextPart] = Field(fail_fast=True, description="text or a list of {type: text, text}")

    neutral = neutral.MESSAGE
    within = "messages"

    @model_validator(mode="before")
    @classmethod
    def _text_is_a_part(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        content = fields.get("content")
        if content is None and fields.get("role") == "assistant":
            content = ""
        return {**fields, "content": [{"text": content}] if isinstance(content, str) else content}


class StreamOptions(Body):
    """How a stream ends."""

    include_usage: Flag = False
    neutral = neutral.STREAM
    within = "stream_options"


class BundleBody(Body):
    """What every request to a bundle has; it is read in the context of `LoadedBundles`."""

    model: str
    experts: dict[str, Any] = Field({}, description="an object {name: factor}")

    @model_validator(mode="before")
    @classmethod
    def _model_is_loaded(cls, fields: Any, info: ValidationInfo) -> Any:
        assert info.context is not None
        check_model(fields.get("model"), info.context)
        return fields

    def group(self, bundles: LoadedBundles) -> Group:
        """Bundle and mask.

        Raises:
            ApiError: 400 for unknown experts or impossible factors.
        """
        with _refusing("experts"):
            return Group(self.model, bundles.mask(self.model, self.experts))


class AnswerBody(BundleBody):
    """What completions and chats have in common."""

    max_tokens: Whole = None
    temperature: float = _from(0, 2, 1.0, "a number")
    top_p: float = Field(1.0, gt=0, le=1, description="a number above 0 and at most 1; temperature 0 is greedy")
    n: int = _from(1, MAX_ANSWERS, 1)
    seed: int | None = _from(-(2**63), 2**64 - 1, None)
    stop: Text | Annotated[list[Text], Len(0, 4)] = Field([], description="a text or up to 4 of them, none empty")
    stream: Flag = False
    stream_options: StreamOptions = Field(StreamOptions(), description="an object {include_usage}")
    return_token_ids: Flag = False
    repetition_penalty: float | None = Field(None, gt=0, le=10, description="a number above 0 and at most 10")
    neutral = neutral.REQUEST

    @model_validator(mode="after")
    def _options_are_for_a_stream(self) -> AnswerBody:
        if self.stream_options.model_fields_set and not self.stream:
            raise ApiError(400, "stream_options is only for stream: true.", "stream_options")
        return self


class CompletionBody(AnswerBody):
    """A request to ``/v1/completions``."""

    prompt: str | SomeIds | Annotated[list[str | SomeIds], Field(fail_fast=True, min_length=1)] = Field(
        union_mode="left_to_right", description="text, token ids, or a list of either"
    )
    logprobs: int | None = _from(0, 20, None)
    echo: Flag = False


class ChatBody(AnswerBody):
    """A request to ``/v1/chat/completions``."""

    messages: list[Message] = Field(fail_fast=True, min_length=1, description="a list of {role, content}")
    max_completion_tokens: Whole = None
    logprobs: Flag = False
    top_logprobs: int | None = _from(0, 20, None)

    @model_validator(mode="after")
    def _logprobs_are_wanted(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true.", "top_logprobs")
        return self


@dataclass(frozen=True)
class AnswerRequest:
    """A request that can be honoured.

    Attributes:
        body: as it was sent.
        group: bundle and mask.
        prompts: token ids, one entry an answer: each prompt n times.
        sampling: how.
        texts: the prompts as they were written, None for those sent as tokens; nothing for a conversation.
    """

    body: CompletionBody | ChatBody
    group: Group
    prompts: list[list[int]]
    sampling: Sampling
    texts: list[str | None] = field(default_factory=list)


def read_request(
    body: bytes, model: type[CompletionBody] | type[ChatBody], bundles: LoadedBundles, max_tokens_limit: int
) -> AnswerRequest:
    """Check a request's JSON against the model of its endpoint.

    Raises:
        ApiError: 400, or 404 for an unknown model; parameter, value and remedy are named.
    """
    fields = parse(model, body, bundles)
    group = fields.group(bundles)
    if isinstance(fields, ChatBody):
        prompts, texts = _chat_prompt(fields.messages, bundles), []
        logprobs = fields.top_logprobs or 0 if fields.logprobs else None
    else:
        many, logprobs = _many(fields.prompt), fields.logprobs
        prompts = [_ids(one, bundles) for one in many]
        texts = [one if isinstance(one, str) else None for one in many]
    if fields.n * len(prompts) > MAX_ANSWERS:
        problem = f"{len(prompts)} prompts × n={fields.n} are more than {MAX_ANSWERS} answers. Send them in parts."
        raise ApiError(400, problem, "n")
    max_tokens = _max_tokens(fields, prompts, bundles.context, max_tokens_limit)
    stops = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop)
    echo = isinstance(fields, CompletionBody) and fields.echo
    how = (fields.temperature, fields.top_p, fields.seed, stops, logprobs, echo, fields.repetition_penalty)
    sampling = Sampling(max_tokens, *how)
    each = [prompt for prompt in prompts for _ in range(fields.n)]
    return AnswerRequest(fields, group, each, sampling, [text for text in texts for _ in range(fields.n)])


def check_model(name: Any, bundles: LoadedBundles) -> None:
    """Raise `ApiError` for what is no name (400) and for a model that is not there (404); the nearest are named."""
    if not isinstance(name, str):
        raise ApiError(400, f"model is {name!r}, expected one of: {', '.join(bundles.names)}.", "model")
    if name not in bundles.names:
        raise ApiError(404, unknown_name("model", name, bundles.names), "model", "model_not_found")


def check_ids(ids: list[int], name: str, bundles: LoadedBundles) -> list[int]:
    """The same token ids; raises `ApiError` (400) where the model does not have one of them."""
    size = bundles.limits.tokens or 0
    if not all(0 <= token < size for token in ids):
        raise ApiError(400, f"{name} holds a token id outside of 0 to {size - 1}.", name)
    return ids


@contextmanager
def _refusing(param: str) -> Iterator[None]:
    """Errors of the library inside are the request's: `ApiError` (400) for this parameter."""
    try:
        yield
    except RadarGateError as error:
        raise ApiError(400, str(error), param) from error


def _chat_prompt(messages: list[Message], bundles: LoadedBundles) -> list[list[int]]:
    roles = {"developer": "system"}
    said = [{"role": roles.get(m.role, m.role), "content": "".join(part.text for part in m.content)} for m in messages]
    with _refusing("messages"):
        return [bundles.chat_ids(said)]


def _many(prompt: Any) -> list[str | list[int]]:
    """The prompts of a request, which may be one."""
    many = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    if len(many) > MAX_ANSWERS:
        raise ApiError(400, f"{len(many)} prompts are more than {MAX_ANSWERS}. Send them in parts.", "prompt")
    return many


def _ids(prompt: str | list[int], bundles: LoadedBundles) -> list[int]:
    return bundles.text_ids(prompt) if isinstance(prompt, str) else check_ids(prompt, "prompt", bundles)


def _max_tokens(fields: CompletionBody | ChatBody, prompts: list[list[int]], context: int | None, limit: int) -> int:
    """Tokens of an answer: what was asked for, and what fits behind the longest prompt."""
    both = {name: getattr(fields, name, None) for name in ("max_completion_tokens", "max_tokens")}
    given = {name: value for name, value in both.items() if value is not None}
    if len(set(given.values())) > 1:
        raise ApiError(400, "max_tokens and max_completion_tokens differ. Give one of them.", next(iter(given)))
    default = None if isinstance(fields, ChatBody) else min(16, limit)
    least = 0 if isinstance(fields, CompletionBody) and fields.echo else 1
    name, wanted = next(iter(given.items()), ("max_tokens", default))
    if wanted is not None and not least <= wanted <= limit:
        raise ApiError(400, f"{name} is {wanted}, expected a whole number from {least} to {limit}.", name)
    if not min(map(len, prompts)):
        raise ApiError(400, "the prompt has no tokens. Write something.", "prompt")
    longest = max(map(len, prompts))
    wanted, needed = limit if wanted is None else wanted, least if wanted is None else wanted
    room = limit if context is None else context - longest
    if room < needed:
        problem = f"the prompt has {longest} tokens and {name} is {needed}, the model's context {context}."
        remedy = "Shorten the prompt or ask for fewer tokens."
        raise ApiError(400, f"{problem} {remedy}", name, "context_length_exceeded")
    return min(room, wanted)
