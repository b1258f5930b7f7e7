"""Fields that this server does not offer, with the values that ask for nothing; None: no value of it changes an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Values = Mapping[str, tuple[Any, ...] | None]

# OpenAI's own fields first, then those that common clients send
REQUEST: Values = {
    "user": None,
    "store": None,
    "metadata": None,
    "service_tier": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
    "prompt_cache_options": None,
    "prompt_cache_retention": None,
    "parallel_tool_calls": None,
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
    "moderation": (),
    "prediction": (),
    "reasoning_effort": ("none", "medium"),  # that of OpenAI's defaults, as is the next
    "verbosity": ("medium",),
    "web_search_options": (),
    "keep_alive": None,
    "cache_prompt": None,
    "top_k": (-1, 0),
    "min_p": (0,),
    "typical_p": (1,),
    "tfs_z": (1,),
    "mirostat": (0,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template_kwargs": ({},),
    "truncate_prompt_tokens": (),
}

# who speaks, marks for caches, and what clients send back of an answer that had it empty
MESSAGE: Values = {
    "name": None,
    "cache_control": None,
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "images": ([],),
    "reasoning": ("",),
    "reasoning_content": ("",),
    "refusal": ("",),
    "tool_calls": ([],),
    "tool_call_id": (),
}

PART: Values = {"cache_control": None, "prompt_cache_breakpoint": None, "annotations": ([],)}

STREAM: Values = {"include_obfuscation": None, "continuous_usage_stats": (False,)}
