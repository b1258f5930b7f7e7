"""``radargate chat``: talk to a bundle, switch its experts, and see which of them spoke."""

from __future__ import annotations

import argparse
import queue
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from radargate.cli import flags
from radargate.errors import OptionError, RadarGateError
from radargate.registry import read_options, unknown_name

if TYPE_CHECKING:
    from radargate.server.engine import Engine
    from radargate.server.loaded import LoadedBundles

HELP = "talk to a bundle in the terminal"
EXAMPLE = "radargate chat bundle --expert law=0"
WORDS = """/experts              the experts and their factors
/experts law=0 math=2  set factors: 0 switches an expert off, 1 is as trained
/why                  mean weight of each expert over the last answer's tokens
/reset                forget the conversation
/help                 this list
Ctrl-C stops an answer, Ctrl-D ends."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("target", metavar="BUNDLE", help="folder or Hub id of a bundle")
    parser.add_argument("--system", metavar="TEXT", help="what the conversation begins with")
    parser.add_argument("--max-new-tokens", type=flags.positive_int, default=512, help="default %(default)s")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) answers greedily")
    parser.add_argument("--top-p", type=float, default=1.0, help="share of probability to sample from (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument(
        "--expert",
        action="append",
        default=[],
        metavar="NAME=FACTOR",
        help="scale an expert's weight, 0 switches it off (may be repeated)",
    )
    parser.add_argument("--base", help="the base to put under the bundle, if not the one it names")
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Read lines and answer them until the input ends."""
    if not 0 <= args.temperature < float("inf") or not 0 < args.top_p <= 1:
        raise OptionError(
            f"--temperature {args.temperature} --top-p {args.top_p}: expected at least 0, and above 0 up to 1."
        )
    from radargate.server.engine import Engine
    from radargate.server.loaded import LoadedBundles

    device = flags.pick_device(args.device)
    bundles = LoadedBundles({"bundle": args.target}, base=args.base, dtype=args.dtype, device=device)
    engine = Engine(bundles, slots=1, queue=1)
    talk = Talk(bundles, engine, args)
    try:
        talk.set_experts(args.expert, "--expert")
        for line in _lines():
            try:
                talk.hear(line)
            except RadarGateError as error:  # a wrong word ends no conversation
                print(f"error: {error}", file=sys.stderr, flush=True)
    finally:
        engine.stop(1)
    return 0


class Talk:
    """A conversation with its expert factors.

    Args:
        bundles: one bundle, called ``bundle``.
        engine: over it.
        args: of the command line.
    """

    def __init__(self, bundles: LoadedBundles, engine: Engine, args: argparse.Namespace) -> None:
        self.bundles, self.engine, self.args = bundles, engine, args
        self.factors: dict[str, float] = {}
        self.messages: list[dict[str, str]] = []
        self.last: tuple[list[int], list[int], dict[str, float]] | None = None  # prompt, answer, factors
        self.turns = 0
        self.reset()

    def hear(self, line: str) -> None:
        """Obey a line that starts with a slash, answer any other.

        Raises:
            RadarGateError: no such word or expert, or the conversation is too long.
        """
        word, *rest = line.split() or [""]
        commands = {"/experts": self.experts, "/why": self.why, "/reset": self.reset, "/help": lambda *rest: WORDS}
        if word in commands:
            print(commands[word](*rest))
        elif word.startswith("/"):
            raise OptionError(unknown_name("word", word, list(commands)))
        elif word:
            self.answer(line)

    def names(self) -> list[str]:
        """All experts."""
        return list(self.bundles.config("bundle").experts)

    def reset(self, *rest: str) -> str:
        """Forget the conversation; factors stay."""
        self.messages = [{"role": "system", "content": self.args.system}] if self.args.system else []
        self.last = None
        return "The conversation starts over."

    def experts(self, *pairs: str) -> str:
        """A table of factors, after those of ``NAME=FACTOR`` words are set."""
        self.set_experts(pairs, "/experts")
        return _table([(name, f"{self.factors.get(name, 1.0):g}") for name in self.names()], ("expert", "factor"))

    def set_experts(self, pairs: Sequence[str], flag: str) -> None:
        """Set factors from ``NAME=FACTOR`` words, all of them or, where one is wrong, none."""
        factors = {**self.factors, **read_options(pairs, flag, f"{self.names()[0]}=0")}
        self.bundles.mask("bundle", factors)
        self.factors = factors

    def answer(self, line: str) -> None:
        """Answer a line, printing as tokens come; Ctrl-C stops the answer and keeps what was said."""
        from radargate.server.jobs import Chunk, Group, Job
        from radargate.server.sampling import Sampling

        messages = [*self.messages, {"role": "user", "content": line}]
        ids = self.bundles.chat_ids(messages)
        context = self.bundles.context
        room = self.args.max_new_tokens if context is None else min(self.args.max_new_tokens, context - len(ids))
        if room < 1:
            raise OptionError(
                f"the conversation has {len(ids)} tokens, the model's context is {context}. /reset starts over."
            )
        chunks: queue.Queue[Chunk] = queue.Queue()
        # logprobs=0: chunks then name their tokens, for /why
        sampling = Sampling(room, self.args.temperature, self.args.top_p, self.args.seed + self.turns, logprobs=0)
        job = Job(Group("bundle", self.bundles.mask("bundle", self.factors)), [ids], sampling, chunks.put)
        self.turns += 1
        self.engine.submit(job)
        text, tokens, finish = "", [], None
        try:
            while finish is None:
                chunk = chunks.get()
                if chunk.error:
                    raise RadarGateError(f"the model failed: {chunk.error}")
                print(chunk.text, end="", flush=True)
                text, finish = text + chunk.text, chunk.finish
                tokens += [chosen.id for chosen, _ in chunk.tokens]
        except KeyboardInterrupt:
            job.cancelled.set()
            self.engine.wake()
        print(flush=True)
        self.messages = [*messages, {"role": "assistant", "content": text}]
        self.last = (ids, tokens, dict(self.factors))

    def why(self, *rest: str) -> str:
        """A table of every expert's mean weight over the last answer's tokens, and how often it was among the chosen.

        Raises:
            OptionError: nothing was answered yet.
        """
        if self.last is None or not self.last[1]:
            raise OptionError("there is no answer yet. Say something first.")
        prompt, answer, factors = self.last
        mask = self.bundles.mask("bundle", factors)
        look = partial(self.bundles.trace, "bundle", mask, prompt + answer, pairs=False, leave_one_out=False)
        # in the thread that owns the model: after Ctrl-C it may still be in its last step
        traced = self.engine.between(look).result()
        found: dict[str, list[list[float]]] = {name: [] for name in self.names()}
        for site in traced.sites():
            weights = site.dense_weights()[len(prompt) :]
            shares = [weights.mean(0).tolist(), (weights != 0).float().mean(0).tolist()]
            for name, *means in zip(site.experts, *shares, strict=True):
                found[name].append(means)
        means = [(name, *map(fmean, zip(*sites, strict=True)), len(sites)) for name, sites in found.items() if sites]
        rows = [
            (name, f"{weight:.3f}", f"{share:.0%}", str(count))
            for name, weight, share, count in sorted(means, key=lambda row: -row[1])
        ]
        return _table(rows, ("expert", "mean weight", "chosen", "sites"))


def _lines() -> Iterator[str]:
    """What is typed or piped in, line by line."""
    shown = "> " if sys.stdin.isatty() else ""
    if shown:
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (editing and history of `input`)
        print("/help shows what there is besides talking; Ctrl-D ends.")
    while True:
        try:
            yield input(shown)
        except EOFError:
            if shown:
                print()
            return
        except KeyboardInterrupt:
            print()


def _table(rows: list[Any], head: tuple[str, ...]) -> str:
    """Columns under their names: the first to the left, numbers to the right."""
    whole = [head, *rows]
    first, *others = [max(map(len, column)) for column in zip(*whole, strict=True)]
    return "\n".join("  ".join([name.ljust(first), *map(str.rjust, cells, others)]) for name, *cells in whole)
