"""The thread that owns the model: requests join its batches between two steps, and unequal ones take turns."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

from radargate.data.prompts import stop_tokens
from radargate.errors import RadarGateError, first_line
from radargate.server.batch import Batch
from radargate.server.jobs import Chunk, Group, Job, Sequence
from radargate.server.loaded import LoadedBundles, masked

STEPS_A_TURN = 4
PREFILL_TOKENS = 4096  # a batch of prompts has no more, padding included, unless a single one is longer
MAX_TASKS = 8
ENDED = "the server is shutting down or has failed. Try another one, or later."


class QueueFull(RadarGateError):
    """No room for another request now."""


class Engine:
    """Decodes what is submitted. One mask of one bundle is one batch; batches take turns of a few steps.

    Args:
        bundles: the bundles.
        slots: sequences that decode at a time, over all batches.
        queue: sequences that may wait.
        count: called with what was done, for metrics: a name and a number.
    """

    def __init__(
        self,
        bundles: LoadedBundles,
        *,
        slots: int = 16,
        queue: int = 64,
        count: Callable[[str, int], None] = lambda name, number: None,
    ) -> None:
        self.bundles, self.slots, self.queue, self.count = bundles, slots, queue, count
        tokenizer, generation = bundles.tokenizer, bundles.base.generation_config
        self._ends = frozenset(stop_tokens(tokenizer))
        self._penalty = float(getattr(generation, "repetition_penalty", None) or 1.0)
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Group, tuple[Batch, list[Sequence]]] = {}
        self._tasks: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self.threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="radargate-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences that decode."""
        return sum(len(sequences) for _, sequences in list(self._running.values()))

    @property
    def alive(self) -> bool:
        """Whether requests will be answered."""
        return self._thread.is_alive() and not self._stopping

    def submit(self, job: Job) -> None:
        """Queue all sequences of a request.

        Raises:
            QueueFull: not all of them find room, or the engine is stopping.
        """
        sequences = [
            Sequence(job, i, self.bundles.tokenizer, self._ends, self._penalty) for i in range(len(job.prompts))
        ]
        with self._changed:
            if not self.alive:
                raise QueueFull(ENDED)
            free = self.slots - self.running + self.queue - len(self._waiting)
            if len(sequences) > free:
                raise QueueFull(
                    f"the queue is full: {len(self._waiting)} answers wait and {len(sequences)} more were asked for, room is "
                    f"for {max(free, 0)}. Try again later, or start the server with a longer `queue`."
                )
            self._waiting.extend(sequences)
            self._changed.notify()

    def between(self, task: Callable[[], Any]) -> Future[Any]:
        """Run a function on the engine's thread between decoding steps; cancel the returned future to withdraw it.

        Raises:
            QueueFull: `MAX_TASKS` wait already, or the engine is stopping.
        """
        promised: Future[Any] = Future()
        with self._changed:
            if not self.alive:
                raise QueueFull(ENDED)
            if len(self._tasks) >= MAX_TASKS:
                raise QueueFull(f"the queue is full: {len(self._tasks)} requests of this kind wait. Try again later.")
            self._tasks.append((promised, task))
            self._changed.notify()
        return promised

    def wake(self) -> None:
        """Look for cancelled requests now."""
        with self._changed:
            self._changed.notify()

    def stop(self, timeout: float | None = None) -> None:
        """Take nothing more, finish what runs or waits (for so many seconds), and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._changed:
                for sequence in [*self._waiting, *(s for _, group in self._running.values() for s in group)]:
                    sequence.job.cancelled.set()
                for promised, _ in self._tasks:
                    promised.cancel()
            self._thread.join(10)

    def _run(self) -> None:
        torch.set_num_threads(self.threads)
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._tasks or self._stopping):
                    self._changed.wait()
                if self._stopping and not (self._waiting or self._running or self._tasks):
                    return
            self._run_task()
            self._drop_cancelled()
            self._admit()
            for group in list(self._running):
                self._turn(group)

    def _run_task(self) -> None:
        """One at a time: those who decode wait for it."""
        with self._changed:
            if not self._tasks:
                return
            promised, task = self._tasks.popleft()
        if promised.set_running_or_notify_cancel():
            try:
                promised.set_result(task())
            except Exception as error:  # it belongs to whoever asked
                promised.set_exception(error)

    def _drop_cancelled(self) -> None:
        with self._changed:
            gone = sum(s.job.cancelled.is_set() for s in self._waiting)
            self._waiting = deque(s for s in self._waiting if not s.job.cancelled.is_set())
        for group in list(self._running):
            try:
                gone += self._keep(group, [not s.job.cancelled.is_set() for s in self._running[group][1]])
            except Exception as error:  # a smaller cache takes memory too, until the larger one is gone
                self._fail(group, error)
        if gone:
            self.count("cancelled", gone)

    def _admit(self) -> None:
        """Fill free slots, first those of groups that have fewest; within a group, first come, first served."""
        while True:
            with self._changed:
                free = self.slots - self.running
                if not self._waiting or free < 1:
                    return
                shares = {group: len(sequences) for group, (_, sequences) in self._running.items()}
                group = min((s.job.group for s in self._waiting), key=lambda g: shares.get(g, 0))
                others = len({s.job.group for s in self._waiting})
                joining: list[Sequence] = []
                for sequence in [s for s in self._waiting if s.job.group == group][: max(1, free // others)]:
                    width = max(len(s.prompt) for s in [*joining, sequence])
                    alone = sequence.reports_prompt or any(s.reports_prompt for s in joining)
                    if joining and (alone or width * (len(joining) + 1) > PREFILL_TOKENS):
                        break
                    joining.append(sequence)
                chosen = set(map(id, joining))
                self._waiting = deque(s for s in self._waiting if id(s) not in chosen)
                pad = self.bundles.tokenizer.pad_token_id or 0
                batch, running = self._running.setdefault(group, (Batch(self.bundles.base, pad), []))
                before = len(running)
                running.extend(joining)
            try:
                with masked(group.mask):
                    model = self.bundles.activate(group.bundle)
                    if joining[0].reports_prompt:
                        logits, cache, mask = batch.read_watched(model, joining[0].prompt, joining[0].read)
                    else:
                        logits, cache, mask = batch.read(model, [s.prompt for s in joining])
            except Exception as error:  # running out of memory, above all: those asked for it, the others go on
                self._fail(group, error, before)
                continue
            try:
                batch.merge(cache, mask)
                self.count("prompt_tokens", sum(len(s.prompt) for s in joining))
                self._take(group, logits, before)
            except Exception as error:
                self._fail(group, error)

    def _turn(self, group: Group) -> None:
        """A few steps of one batch; more would let the others wait, fewer would switch between bundles all the time."""
        for _ in range(STEPS_A_TURN if len(self._running) > 1 else 1):
            if group not in self._running:
                return
            batch, sequences = self._running[group]
            try:
                with masked(group.mask):
                    logits = batch.step(self.bundles.activate(group.bundle), [s.last for s in sequences])
                self._take(group, logits, 0)
            except Exception as error:
                self._fail(group, error)
                return

    def _take(self, group: Group, logits: torch.Tensor, first: int) -> None:
        """Give each sequence from ``first`` on its logits; finished ones leave."""
        sequences = self._running[group][1]
        going = [True] * first
        for row, sequence in zip(logits, sequences[first:], strict=True):
            going.append(not sequence.take(row))
        self.count("generated_tokens", len(logits))
        self._keep(group, going)

    def _keep(self, group: Group, going: list[bool]) -> int:
        """Drop the sequences that do not go on; how many."""
        batch, sequences = self._running[group]
        if not all(going):
            batch.keep([i for i, on in enumerate(going) if on])
            with self._changed:
                sequences[:] = [s for s, on in zip(sequences, going, strict=True) if on]
                if not sequences:
                    del self._running[group]
        return going.count(False)

    def _fail(self, group: Group, error: Exception, first: int = 0) -> None:
        """End the sequences from ``first`` on; each is sent the reason."""
        with self._changed:
            sequences = self._running[group][1]
            lost = sequences[first:]
            del sequences[first:]
            if not sequences:
                del self._running[group]
        for sequence in lost:
            sequence.job.send(Chunk(sequence.index, error=f"{type(error).__name__}: {first_line(error)}"))
