"""Rows that decode together: they enter while others are in the middle of their replies, and leave when theirs end.

Prompts of about one length are read together, each once for all the samples that enter with it, shorter ones padded on the left where
no state takes up anything. While prompts are read the other rows stand still; then every row gets a token a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.ssm.mamba_mixer import MambaMixer

from nemo_cascade.models.replay import ReplayedExperts, recorded
from nemo_cascade.rollout.cache import Cache
from nemo_cascade.rollout.noise import row_keys, uniforms
from nemo_cascade.rollout.sampling import sample
from nemo_cascade.rollout.types import Request, Rollout, SamplingParams

# Prompts are read together while the longest is at most this much longer than the shortest: padding costs as much as tokens.
STRETCH, SLACK = 1.25, 4
# Prompt tokens that are read at once, which bounds what a forward pass holds in memory. On a CPU more is slower (65,536: half
# as fast), because it leaves the caches.
MAX_PREFILL_TOKENS = 4_096


def shared(params: SamplingParams) -> tuple:
    """What all rows of a batch have in common; seed, length and stop tokens are each row's own."""
    return params.temperature, params.top_p, params.report_experts


def whole_length(request: Request, params: SamplingParams) -> int:
    """Tokens of a prompt with the longest reply that is allowed."""
    return len(request.prompt) + params.max_new_tokens


@dataclass
class Row:
    """A request and its reply so far; `over` once that has ended or nobody wants it any more.

    experts: of each token that was read [layers, topk], where they are asked for.
    """

    request: Request
    params: SamplingParams
    response: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    experts: list[torch.Tensor] = field(default_factory=list)
    over: bool = False

    @property
    def read(self) -> int:
        """How many of its tokens are in the cache: all but the newest of its reply, the prompt before that."""
        return len(self.request.prompt) + max(len(self.response) - 1, 0)

    def rollout(self, stopped: bool) -> Rollout:
        return Rollout(
            prompt_id=self.request.prompt_id,
            sample=self.request.sample,
            prompt=list(self.request.prompt),
            response=self.response,
            logprobs=self.logprobs,
            finish_reason="stop" if stopped else "length",
            experts=torch.stack(self.experts) if self.params.report_experts else None,
        )


class Batch:
    """`enter` and `step` by turns, until it is `done`. replays: of the routers whose experts rollouts may be asked to report."""

    def __init__(self, params: SamplingParams, vocab_size: int, mixers: list[MambaMixer], device, replays: list[ReplayedExperts]):
        self.params, self.vocab_size = params, vocab_size
        self.replays = replays if params.report_experts else []
        self.cache = Cache(mixers, device)
        self.rows: list[Row] = []
        # Prompts that wait to be read, each as the rows that have it; logits of what follows them, for the rows that entered last.
        self.unread: list[list[list[int]]] = []
        self.first_logits = torch.zeros(0, vocab_size)
        # Of every row: the noise's key, tokens of the prompt, tokens of the reply, the newest of these.
        self.keys, self.lengths, self.written, self.newest = (torch.zeros(0, dtype=torch.long) for _ in range(4))
        # Row-steps that rows which are over, or requests which wait for their places, have cost since the last change.
        self.idle = 0

    def alive(self) -> int:
        return sum(not row.over for row in self.rows)

    def done(self) -> bool:
        return all(row.over for row in self.rows)

    def longest(self) -> int:
        """Columns that the cache needs for rows to come to their ends."""
        return max(whole_length(row.request, row.params) for row in self.rows if not row.over)

    def drop(self, ids: set[tuple[str, int]]) -> None:
        """Lets rows end without a rollout."""
        for row in self.rows:
            if (row.request.prompt_id, row.request.sample) in ids:
                row.over = True

    def due(self, waiting: int) -> bool:
        """Whether rows should leave and enter, asked once before each step; `waiting`: how many would enter.

        A change holds up all running rows for about a step. So it is due when rows that are over, or that wait for their places,
        have cost as many row-steps since the last one.
        """
        if self.unread:
            return False
        alive = self.alive()
        self.idle += max(len(self.rows) - alive, waiting)
        return self.idle >= alive or self.cache.full()

    def enter(self, requests: list[tuple[Request, SamplingParams]]) -> None:
        """Rows that are over leave and these come; their prompts are read in the next steps."""
        self.idle = 0
        kept = [place for place, row in enumerate(self.rows) if not row.over]
        if not requests and len(kept) == len(self.rows) and not self.cache.full():
            return
        new = [Row(*entry) for entry in requests]
        new.sort(key=lambda row: (len(row.request.prompt), row.request.prompt_id, row.request.sample))
        self.rows = [self.rows[place] for place in kept] + new
        keys = [row_keys(row.params.seed, [row.request.prompt_id], [row.request.sample]) for row in new]
        lengths = torch.tensor([len(row.request.prompt) for row in new], dtype=torch.long)
        self.keys = torch.cat([self.keys[kept], *keys])
        self.lengths = torch.cat([self.lengths[kept], lengths])
        self.written = torch.cat([self.written[kept], torch.zeros_like(lengths)])
        self.newest = torch.cat([self.newest[kept], torch.zeros_like(lengths)])
        width = max((row.read for row in self.rows[: len(kept)]), default=0)
        self.cache.arrange(kept, width, len(self.rows), self.longest(), max(row.read for row in self.rows))
        self.unread = [
            [[len(kept) + place for place in places] for places in together]
            for together in prompts_to_read([row.request.prompt for row in new])
        ]
        self.first_logits = torch.zeros(len(new), self.vocab_size)

    def step(self, forward) -> list[Rollout]:
        """One forward pass: reads some of the prompts, or gives every row its next token."""
        if self.unread:
            self._read(forward, self.unread.pop(0))
            return [] if self.unread else self._choose(self.first_logits)
        context = self.cache.decoding()
        held = self.lengths + self.written - 1
        visible = torch.arange(context.sequence_len_offset + 1) >= context.sequence_len_offset - held[:, None]
        everything = bool(visible[:, 0].all())
        logits = forward(self.newest[:, None], context.sequence_len_offset, context, None if everything else visible).cpu()
        if self.replays:
            for row, chosen in zip(self.rows, recorded(self.replays).cpu().unbind()):
                row.experts.append(chosen)
        context.sequence_len_offset += 1
        return self._choose(logits)

    def _read(self, forward, rows_of: list[list[int]]) -> None:
        """Reads some prompts of about one length, each for all the rows that have it, and hands these their states."""
        prompts = [self.rows[rows[0]].request.prompt for rows in rows_of]
        length = len(prompts[-1])
        tokens = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts])
        visible = torch.arange(length) >= length - torch.tensor([[len(prompt)] for prompt in prompts])
        context = StaticInferenceContext(len(prompts), length)
        logits = forward(tokens, 0, context, None if bool(visible.all()) else visible).cpu()
        source = [number for number, rows in enumerate(rows_of) for _ in rows]
        target = [row for rows in rows_of for row in rows]
        self.cache.put(context, source, target)
        self.first_logits[torch.tensor(target) - (len(self.rows) - len(self.first_logits))] = logits[source]
        if self.replays:
            # Routers see the tokens of a position side by side.
            chosen = recorded(self.replays).unflatten(0, (length, len(prompts))).cpu()
            for number, row in zip(source, target):
                self.rows[row].experts += chosen[length - len(prompts[number]) :, number].unbind()

    def _choose(self, logits: torch.Tensor) -> list[Rollout]:
        """Gives the last rows, for each of which there are logits, their next token; the rollouts that it ends."""
        rows = slice(len(self.rows) - len(logits), None)
        noise = uniforms(self.keys[rows], self.written[rows])
        tokens, logprobs = sample(logits, noise, self.params.temperature, self.params.top_p)
        self.newest[rows], self.written[rows] = tokens, self.written[rows] + 1
        finished = []
        for row, token, logprob in zip(self.rows[rows], tokens.tolist(), logprobs.tolist()):
            if row.over:
                continue
            row.response.append(token)
            row.logprobs.append(logprob)
            stopped = token in row.params.stop_ids
            if stopped or len(row.response) == row.params.max_new_tokens:
                row.over = True
                finished.append(row.rollout(stopped))
        return finished


def prompts_to_read(prompts: list[tuple[int, ...]]) -> Iterator[list[list[int]]]:
    """Which prompts are read at once: of about one length, at most MAX_PREFILL_TOKENS in all, each as the rows that have it.

    prompts are those of all rows, shortest first.
    """
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows_of.setdefault(prompt, []).append(row)
    together: list[tuple[int, ...]] = []
    for prompt in rows_of:
        if together:
            too_long = len(prompt) > STRETCH * len(together[0]) + SLACK
            if too_long or (len(together) + 1) * len(prompt) > MAX_PREFILL_TOKENS:
                yield [rows_of[p] for p in together]
                together = []
        together.append(prompt)
    if together:
        yield [rows_of[p] for p in together]
