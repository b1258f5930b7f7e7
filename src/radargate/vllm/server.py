"""``vllm serve`` with a bundle: checked first, in this process, so that what cannot be is said in one line before memory is taken."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from typing import Any

from radargate.composition.config import RadarConfig
from radargate.errors import OptionError, RadarGateError
from radargate.vllm.refusals import PROMPTS, check_engine, routes_prompts


def serve(words: Sequence[str], config: RadarConfig) -> int:
    """Check vLLM's flags with the bundle's configuration, then become ``vllm serve``.

    Raises:
        RadarGateError: vLLM, so set up, cannot serve the bundle, or refuses its flags.
    """
    if not any(word.partition("=")[0] in ("-h", "--help") for word in words):
        configured = _configured(words)
        if routes_prompts(config) and not configured.use_v2_model_runner:
            given = configured.model_config.logits_processors or []
            configured.model_config.logits_processors = [*given, PROMPTS]
            words = [*words, "--logits-processors", *given, PROMPTS]
        check_engine(configured, config)
    from vllm.entrypoints.cli.main import main

    sys.argv = ["vllm", "serve", *words]
    main()
    return 0


def _configured(words: Sequence[str]) -> Any:
    """What vLLM makes of its flags: a ``VllmConfig``."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args = make_arg_parser(FlexibleArgumentParser()).parse_args(list(words))
    except SystemExit as error:
        line = (said.getvalue().strip().splitlines() or ["unknown flag"])[-1]
        raise OptionError(f"vLLM does not take these flags: {line.rpartition('error: ')[2]}") from error
    args.model = args.model_tag or args.model
    try:
        return AsyncEngineArgs.from_cli_args(args).create_engine_config()
    except RadarGateError:
        raise
    except Exception as error:  # pydantic and vLLM raise what they like for values that cannot be
        raise OptionError(f"vLLM does not take these flags: {_told(error)}") from error


def _told(error: Exception) -> str:
    """What an error says, in one line; pydantic's begins with a heading and ends with an address."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1].partition(" [type=")[0] if "validation error" in lines[0] and len(lines) > 1 else lines[0]
