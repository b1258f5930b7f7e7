"""Reading requests: every field is checked, and what cannot be honoured is refused, never skipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from radargate.errors import RadarGateError
from radargate.registry import unknown_name
from radargate.server.fields import ApiError, check_names, flag, integer, number, read_object
from radargate.server.jobs import Group
from radargate.server.residents import Residents
from radargate.server.sampling import Sampling

MAX_ANSWERS = 64
_BOTH = (
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "n",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "experts",
    "logprobs",
    "return_token_ids",
)
_FIELDS = {
    "completions": (*_BOTH, "prompt"),
    "chat": (*_BOTH, "messages", "max_completion_tokens", "top_logprobs"),
}
# they change no answer
_WITHOUT_EFFECT = (
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
)
# what OpenAI offers and this server does not, with the values that ask for nothing
_NOTHING: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}


@dataclass(frozen=True)
class Asked:
    """A request that can be honoured.

    Attributes:
        chat: which of the two endpoints.
        model: as the request wrote it.
        group: bundle and mask.
        prompts: token ids, one entry an answer: each prompt n times.
        read: tokens of the prompts, each counted once.
        sampling: how.
        stream: send pieces as they come.
        usage: end a stream with the usage.
        ids: also send token ids, of the prompt and of the answer.
    """

    chat: bool
    model: str
    group: Group
    prompts: list[list[int]]
    read: int
    sampling: Sampling
    stream: bool
    usage: bool
    ids: bool = False


def read_request(body: bytes, endpoint: str, residents: Residents, max_tokens_limit: int) -> Asked:
    """Check a request's JSON against an endpoint, ``completions`` or ``chat``.

    Raises:
        ApiError: 400, or 404 for an unknown model; parameter, value and remedy are named.
    """
    fields = read_object(body)
    known = _FIELDS[endpoint]
    for name, value in fields.items():
        if name in _NOTHING and value not in _NOTHING[name]:
            raise ApiError(400, f"{name} is not supported by this server. Leave it out.", name, "unsupported_parameter")
    check_names(fields, known, (*_WITHOUT_EFFECT, *_NOTHING))
    group = read_group(fields, residents)
    prompts = _chat_prompt(fields, residents) if endpoint == "chat" else _text_prompts(fields, residents)
    n = integer(fields, "n", 1, 1, MAX_ANSWERS) or 1
    if n * len(prompts) > MAX_ANSWERS:
        raise ApiError(
            400, f"{len(prompts)} prompts × n={n} are more than {MAX_ANSWERS} answers. Send them in parts.", "n"
        )
    max_tokens, name = _max_tokens(fields, endpoint, max_tokens_limit)
    room = _room(prompts, max_tokens, residents, name)
    stream = flag(fields, "stream")
    sampling = Sampling(
        min(room, max_tokens or max_tokens_limit),
        number(fields, "temperature", 1.0, 0, 2),
        _top_p(fields),
        integer(fields, "seed", None, -(2**63), 2**64 - 1),
        _stops(fields),
        _logprobs(fields, endpoint),
    )
    repeated = [prompt for prompt in prompts for _ in range(n)]
    read = sum(map(len, prompts))
    return Asked(
        endpoint == "chat",
        group.bundle,
        group,
        repeated,
        read,
        sampling,
        stream,
        _usage(fields, stream),
        flag(fields, "return_token_ids"),
    )


def read_group(fields: Mapping[str, Any], residents: Residents) -> Group:
    """Bundle and mask, from ``model`` and ``experts``.

    Raises:
        ApiError: 404 for an unknown model, 400 for unknown experts or impossible factors.
    """
    model = fields.get("model")
    if not isinstance(model, str):
        raise ApiError(400, f"model is {model!r}, expected one of: {', '.join(residents.names)}.", "model")
    check_model(model, residents)
    return Group(model, _mask(fields, model, residents))


def check_model(name: str, residents: Residents) -> None:
    """Raise `ApiError` (404) for a model that is not there; the nearest are named."""
    if name not in residents.names:
        raise ApiError(404, unknown_name("model", name, residents.names), "model", "model_not_found")


def token_ids(value: Any, name: str, residents: Residents) -> list[int]:
    """A list of token ids that the model has.

    Raises:
        ApiError: it is something else.
    """
    if not _are_ids(value):
        raise ApiError(400, f"{name} is of another kind, expected token ids.", name)
    size = residents.base.get_input_embeddings().num_embeddings
    if not all(0 <= token < size for token in value):
        raise ApiError(400, f"{name} holds a token id outside of 0 to {size - 1}.", name)
    return list(value)


def _chat_prompt(fields: Mapping[str, Any], residents: Residents) -> list[list[int]]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages is missing or empty, expected a list of {role, content}.", "messages")
    read = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ApiError(400, f"messages[{i}] has no role, expected {{role, content}}.", "messages")
        if message["role"] not in ("system", "developer", "user", "assistant"):
            raise ApiError(
                400, f"messages[{i}].role is {message['role']!r}, expected system, user or assistant.", "messages"
            )
        # clients send what an answer said of nothing back with it, such as tool_calls: null
        check_names(
            {key: value for key, value in message.items() if value not in (None, [])},
            ("role", "content"),
            within=f"messages[{i}]",
        )
        role = "system" if message["role"] == "developer" else message["role"]
        read.append({"role": role, "content": _content(message.get("content"), i)})
    try:
        return [residents.chat_ids(read)]
    except RadarGateError as error:
        raise ApiError(400, str(error), "messages") from error


def _content(content: Any, i: int) -> str:
    """Text, or a list of parts that are all text."""
    if isinstance(content, list):
        for part in content:
            if (
                not isinstance(part, dict)
                or part.get("type", "text") != "text"
                or not isinstance(part.get("text"), str)
            ):
                raise ApiError(
                    400, f"messages[{i}].content has a part that is no text, expected {{type: text, text}}.", "messages"
                )
            check_names(part, ("type", "text"), within=f"messages[{i}].content")
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ApiError(400, f"messages[{i}].content is a {type(content).__name__}, expected text.", "messages")
    return content


def _text_prompts(fields: Mapping[str, Any], residents: Residents) -> list[list[int]]:
    prompt = fields.get("prompt")
    if _are_ids(prompt):
        prompt = [prompt]
    many: list[Any] = prompt if isinstance(prompt, list) else [prompt]
    if not many or not all(isinstance(one, str) or _are_ids(one) for one in many):
        raise ApiError(
            400, "prompt is missing or of another kind, expected text, token ids, or a list of either.", "prompt"
        )
    if len(many) > MAX_ANSWERS:
        raise ApiError(400, f"{len(many)} prompts are more than {MAX_ANSWERS}. Send them in parts.", "prompt")
    return [residents.text_ids(one) if isinstance(one, str) else token_ids(one, "prompt", residents) for one in many]


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(v) is int for v in value)


def _max_tokens(fields: Mapping[str, Any], endpoint: str, limit: int) -> tuple[int | None, str]:
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in fields]
    if len(names) == 2 and fields[names[0]] != fields[names[1]]:
        raise ApiError(400, "max_tokens and max_completion_tokens differ. Give one of them.", names[0])
    name = names[0] if names else "max_tokens"
    return integer(fields, name, min(16, limit) if endpoint == "completions" else None, 1, limit), name


def _room(prompts: list[list[int]], max_tokens: int | None, residents: Residents, name: str) -> int:
    """Tokens that an answer may have after the longest prompt."""
    longest = max(map(len, prompts))
    if not min(map(len, prompts)):
        raise ApiError(400, "the prompt has no tokens. Write something.", "prompt")
    if residents.context is None:
        return max_tokens or 2**31
    room = residents.context - longest
    if room < (max_tokens or 1):
        raise ApiError(
            400,
            f"the prompt has {longest} tokens and {name} is {max_tokens or 1}, the model's context {residents.context}. "
            "Shorten the prompt or ask for fewer tokens.",
            name,
            "context_length_exceeded",
        )
    return room


def _mask(fields: Mapping[str, Any], model: str, residents: Residents) -> Any:
    factors = fields.get("experts", {})
    if not isinstance(factors, dict):
        raise ApiError(400, f"experts is a {type(factors).__name__}, expected an object {{name: factor}}.", "experts")
    try:
        return residents.mask(model, factors)
    except RadarGateError as error:
        raise ApiError(400, str(error), "experts") from error


def _logprobs(fields: Mapping[str, Any], endpoint: str) -> int | None:
    if endpoint == "completions":
        return integer(fields, "logprobs", None, 0, 20)
    wanted = flag(fields, "logprobs")
    if "top_logprobs" in fields and not wanted:
        raise ApiError(400, "top_logprobs needs logprobs: true.", "top_logprobs")
    return integer(fields, "top_logprobs", 0, 0, 20) if wanted else None


def _stops(fields: Mapping[str, Any]) -> tuple[str, ...]:
    stop = fields.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(s, str) and s for s in stops):
        raise ApiError(400, f"stop is {stop!r}, expected a text or up to 4 of them, none empty.", "stop")
    return tuple(stops)


def _usage(fields: Mapping[str, Any], stream: bool) -> bool:
    options = fields.get("stream_options", {})
    if not isinstance(options, dict) or (options and not stream):
        raise ApiError(400, "stream_options is an object, and only for stream: true.", "stream_options")
    given = {name: value for name, value in options.items() if value is not None}
    check_names(given, ("include_usage",), within="stream_options")
    return flag(given, "include_usage")


def _top_p(fields: Mapping[str, Any]) -> float:
    value = number(fields, "top_p", 1.0, 0, 1)
    if value == 0:
        raise ApiError(
            400, "top_p is 0, expected a number above 0 and at most 1. Use temperature 0 for greedy.", "top_p"
        )
    return value
