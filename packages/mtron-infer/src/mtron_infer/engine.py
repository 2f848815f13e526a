"""The engine: requests in, steps of the whole batch, outputs out."""

import threading
from collections.abc import AsyncIterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtron_infer import scheduler
from mtron_infer.config import EngineConfig, SamplingParams
from mtron_infer.outputs import Completion, Output, Prompt, Request, join_outputs
from mtron_infer.prepare import Preparer, TextCodec
from mtron_infer.runner import Runner
from mtron_infer.sampler import pick, random_key, score
from mtron_infer.scheduler import Limits, Plan, QueueState, Waiting
from mtron_infer.scoring import score_tokens
from mtron_infer.sequence import Continuation, PreparedRequest
from mtron_infer.support import check_generates, check_length

_SCORED_AT_ONCE = 256
"""Prompt positions whose logits exist at a time."""


def _max_len(config: EngineConfig, of_model: int) -> int:
    """Return how many tokens a sequence may have."""
    if config.max_len is not None and config.max_len > of_model:
        raise ValueError(
            f"max_len: the model takes at most {of_model} tokens, got {config.max_len}"
        )
    return config.max_len or of_model


class Engine:
    """Generates for many requests at a time; they join and leave the batch between steps.

    An engine belongs to one thread: the one that calls it, or the worker thread that `stream`
    starts. Only `prepare` may be called from others.

    Args:
        model: a decoder of mtron_models with its weights, on the device where it shall run.
        tokenizer: its tokenizer.
        config: limits.

    Raises:
        ValueError: the limits exceed the model's, or the model does not continue texts.
    """

    def __init__(
        self, model: nn.Module, tokenizer: TextCodec, config: EngineConfig | None = None
    ) -> None:
        check_generates(model)
        self.config = config or EngineConfig()
        self.tokenizer = tokenizer
        self.model = model.eval()
        model_config: Any = model.config
        self.max_len = _max_len(self.config, model_config.max_position_embeddings)
        check_length(model, self.max_len)
        # A model's vocabulary may be padded beyond the tokenizer's.
        self._vocab_size = min(model_config.vocab_size, tokenizer.vocab_size)
        self._preparer = Preparer(tokenizer, self._vocab_size, self.max_len, self.config.max_queue)
        eos = {tokenizer.eos_id, getattr(model_config, "eos_token_id", None)} - {None}
        self._eos_ids = frozenset(eos)
        self._limits = Limits(
            self.config.max_batch_size, self.config.max_batch_tokens, self.config.max_queue
        )
        self._runner = Runner(model, self.config.max_batch_size, self.max_len)
        self._queue = QueueState()
        self._sequences: dict[int, Continuation] = {}
        self._undelivered: list[Output] = []
        self._request_ids, self._sequence_ids = count(), count()
        self._owner: threading.Thread | None = None
        self._streams: Any = None

    @property
    def is_busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._queue) or bool(self._undelivered)

    @property
    def room(self) -> int:
        """Sequences that `add` can take now."""
        return scheduler.room(self._queue, self._limits)

    @property
    def num_running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._queue.running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a slot."""
        return len(self._queue.waiting)

    def prepare(self, request: Request) -> PreparedRequest:
        """Check and tokenize a request; safe to call from any thread.

        Raises:
            ValueError: the request can never run; the message begins with the field's name.
        """
        return self._preparer.prepare(request)

    def add(self, request: Request | PreparedRequest) -> int:
        """Put a request in the queue and return its id.

        Raises:
            ValueError: the request can never run.
            QueueFullError: its `n` sequences cannot wait now.
        """
        return self.add_all([request])[0]

    def add_all(self, requests: Sequence[Request | PreparedRequest]) -> list[int]:
        """Put all requests in the queue, or none; see `add`."""
        self._check_thread()
        prepared = [self.prepare(r) if isinstance(r, Request) else r for r in requests]
        added: dict[int, Continuation] = {}
        request_ids = []
        for request in prepared:
            request_ids.append(next(self._request_ids))
            for index in range(request.params.n):
                key = random_key(request.seed, index)
                added[next(self._sequence_ids)] = Continuation(
                    request_ids[-1], index, request, key, self._decode, self._eos_ids
                )
        waiting = [Waiting(id_, len(sequence.tokens)) for id_, sequence in added.items()]
        self._queue = scheduler.enqueue(self._queue, self._limits, waiting)
        self._sequences |= added
        return request_ids

    def cancel(self, request_id: int) -> None:
        """End a request; its unfinished choices end with `abort` in the next step's outputs.

        Nothing happens if it is finished or unknown.
        """
        self._check_thread()
        ids = {i for i, s in self._sequences.items() if s.request_id == request_id}
        self._undelivered += [self._sequences.pop(i).abort() for i in sorted(ids)]
        self._queue = scheduler.remove(self._queue, ids)

    def reset(self) -> None:
        """Forget all requests without another output."""
        self._check_thread()
        self._queue, self._undelivered = QueueState(), []
        self._sequences.clear()

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Advance every running sequence by one pass through the model.

        Returns:
            What was added to each choice; nothing for a choice whose prompt is not through yet.
        """
        self._check_thread()
        outputs, self._undelivered = self._undelivered, []
        plan = scheduler.plan(self._queue, self._limits)
        if plan.chunks:
            outputs += self._run(plan)
        return outputs

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None
    ) -> list[Completion]:
        """Continue all prompts and wait for the end.

        Args:
            prompts: texts or lists of token ids; as many as you like.
            params: for all of them.

        Returns:
            One completion per prompt, in their order.

        Raises:
            ValueError: a prompt can never run; nothing was generated then.
        """
        if isinstance(prompts, str):
            raise ValueError("prompts: is one string; give a list of prompts")
        prepared = [self.prepare(Request(prompt, params or SamplingParams())) for prompt in prompts]
        outputs: dict[int, list[Output]] = {}
        others: list[Output] = []
        todo = prepared[::-1]
        try:
            while todo or any(s.request_id in outputs for s in self._sequences.values()):
                while todo and todo[-1].params.n <= self.room:
                    outputs[self.add(todo.pop())] = []
                for output in self.step():
                    outputs.get(output.request_id, others).append(output)
        except BaseException:
            for request_id in outputs:
                self.cancel(request_id)
            raise
        finally:
            others += [o for o in self._undelivered if o.request_id not in outputs]
            self._undelivered = others
        return [
            Completion(request.prompt, tuple(join_outputs(parts)))
            for request, parts in zip(prepared, outputs.values(), strict=True)
        ]

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Return how probable the model holds each token after those before it.

        Args:
            token_ids: sequences, each of at least one token and within the context.

        Returns:
            For every sequence of n tokens n - 1 natural logarithms, float32 or float64 as the
            model: entry j belongs to token j + 1.

        Raises:
            ValueError: a sequence is empty, too long, or has ids outside the vocabulary.
        """
        checked = [
            self._preparer.check_token_ids(f"token_ids[{i}]", ids)
            for i, ids in enumerate(token_ids)
        ]
        return score_tokens(self.model, checked, self.config.max_batch_tokens)

    def stream(self, request: Request) -> AsyncIterator[Output]:
        """Generate in a worker thread and yield the request's outputs as they come.

        The first call starts the thread; `close` ends it, and in between the engine's other
        methods may not be called. Leaving the iteration early cancels the request.

        Raises:
            ValueError: the request can never run.
            QueueFullError: its sequences cannot wait now.
        """
        from mtron_infer.worker import AsyncEngine  # it needs this module

        if self._streams is None:
            self._streams = AsyncEngine(self)
        return self._streams.stream(request)

    def close(self) -> None:
        """End the worker thread, if there is one, and whatever it runs."""
        if self._streams is not None:
            self._streams.close()
            self._streams = None

    def set_owner(self, thread: threading.Thread | None) -> None:
        """Give the engine to one thread; None gives it back to all."""
        self._owner = thread

    def _run(self, plan: Plan) -> list[Output]:
        chunks = plan.chunks
        rows = [self._sequences[chunk.id] for chunk in chunks]
        tokens = [
            token
            for chunk, row in zip(chunks, rows, strict=True)
            for token in row.tokens[chunk.start : chunk.start + chunk.count]
        ]
        hidden = self._runner.forward(chunks, tokens)
        self._queue = plan.after
        pieces = hidden.split([chunk.count for chunk in chunks])
        for chunk, row, piece in zip(chunks, rows, pieces, strict=True):
            if row.wants_prompt_scores:
                self._score_prompt(row, chunk.start, piece)
        ready = [i for i, chunk in enumerate(chunks) if chunk.is_last]
        if not ready:
            return []
        outputs = self._advance([rows[i] for i in ready], [pieces[i][-1] for i in ready])
        finished = {chunks[i].id for i in ready if rows[i].finished}
        for id_ in finished:
            del self._sequences[id_]
        self._queue = scheduler.remove(self._queue, finished)
        self._queue = scheduler.extend(self._queue, {chunks[i].id for i in ready})
        return outputs

    def _score_prompt(self, row: Continuation, start: int, hidden: Tensor) -> None:
        """Score the prompt tokens that follow those whose hidden states `[N, hidden]` are given."""
        targets = row.request.prompt[start + 1 : start + 1 + len(hidden)]
        num_top = row.request.params.logprobs or 0
        for begin in range(0, len(targets), _SCORED_AT_ONCE):
            ids = targets[begin : begin + _SCORED_AT_ONCE]
            logits = self._runner.logits(hidden[begin : begin + len(ids)])
            row.add_prompt_scores(score(logits, ids, num_top, self._vocab_size))

    def _advance(self, rows: list[Continuation], hidden: list[Tensor]) -> list[Output]:
        """Give each row its next token, from its last hidden state `[hidden]`."""
        logits = self._runner.logits(torch.stack(hidden))
        is_finite = logits.isfinite().all(dim=-1).tolist()
        going = [i for i, row in enumerate(rows) if is_finite[i] and row.request.max_tokens]
        chosen = pick(logits[going], [rows[i] for i in going], self._vocab_size)
        picked = dict(zip(going, chosen, strict=True))
        outputs = []
        for i, row in enumerate(rows):
            if i in picked:
                outputs.append(row.append(*picked[i]))
            else:
                outputs.append(row.finish_empty() if is_finite[i] else row.abort())
        return outputs

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    def _check_thread(self) -> None:
        if self._owner not in (None, threading.current_thread()):
            raise RuntimeError("the engine belongs to its worker thread; call close() first")
