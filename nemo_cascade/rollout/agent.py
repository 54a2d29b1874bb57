"""Conversations with tools: the model speaks, its calls are made, their answers are appended, and it speaks again.

All conversations go on side by side: while some wait for their tools, the engine samples for the others. Tools run in threads; where
tensor ranks have the same conversations, in those of the first, whose answers the others hear, so that all ask the engine for the same.
"""

import dataclasses
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist

from nemo_cascade import heartbeat
from nemo_cascade.rollout.engine import RolloutEngine, first, nothing_to_do
from nemo_cascade.rollout.protocol import ToolProtocol, shortened
from nemo_cascade.rollout.types import FAILED, Request, Rollout, SamplingParams
from nemo_cascade.sandbox import SandboxError

# Calls at a time, on one rank.
CONCURRENCY = 64
# Added to the seed for each turn, above what seeds of steps reach: the noise of every turn is its own.
TURN = 1 << 44
PAUSE = 0.002


class Session(Protocol):
    """What an environment gives a conversation (its `session(row)`).

    It may have `finished`, true once the model has said that it is done, and `outcome()`, what its verifier is given beside the
    reply, as JSON; `prepare()`, which is called before a turn's calls and may wait for other conversations to end, and `close()`,
    which is called once the conversation is over, however it ended, perhaps in the middle of a call. A call that raises
    SandboxError is the host's failure and ends the conversation; others are told to the model.
    """

    tools: list[dict]
    max_steps: int

    def call(self, name: str, arguments: dict | str) -> str:
        """What the tool says."""


@dataclass(frozen=True)
class Talk:
    """How conversations go. open: a request's session, None where it has no tools, and whether its turns begin with a thought.

    turns: how often the model may speak. tokens: of prompt, turns and answers together. timeout: seconds for the calls of one
    turn, after which the conversation ends without their answers.
    """

    protocol: ToolProtocol
    open: Callable[[Request], tuple[Session | None, bool]]
    turns: int
    tokens: int
    timeout: float = 600.0


@dataclass
class Conversation:
    """A request and what came of it so far. since: when its tools were asked; never, while they are being prepared."""

    request: Request
    session: Session | None
    thinking: bool
    response: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    turns: int = 0
    calls: int = 0
    since: float = 0.0
    answers: list[str] | None = None
    finish_reason: str | None = None
    errors: int = 0
    failed: str | None = None
    finished: bool = False
    experts: torch.Tensor | None = None

    def next_request(self) -> Request:
        return Request(self.request.prompt_id, self.request.sample, (*self.request.prompt, *self.response))

    def hear(self, turn: Rollout) -> None:
        self.append(turn.response, turn.logprobs, 1)
        self.turns += 1
        self.experts = turn.experts

    def append(self, tokens: list[int], logprobs: list[float], own: int) -> None:
        self.response += tokens
        self.logprobs += logprobs
        self.own += [own] * len(tokens)

    def close(self) -> None:
        """Lets its tools go."""
        getattr(self.session, "close", nothing_left)()

    def rollout(self) -> Rollout:
        info: dict = {}
        if self.session is not None:
            info = {"turns": self.turns, "tool_calls": self.calls, "tool_errors": self.errors}
            if self.finish_reason in FAILED:
                info["verifier_error"] = self.failed or "a tool took too long"
            elif hasattr(self.session, "outcome"):
                info["outcome"] = self.session.outcome()
        return Rollout(
            prompt_id=self.request.prompt_id,
            sample=self.request.sample,
            prompt=list(self.request.prompt),
            response=self.response,
            logprobs=self.logprobs,
            finish_reason=self.finish_reason or "stop",
            info=info,
            own=None if all(self.own) else self.own,
            experts=self.experts,
        )


def converse(
    engine: RolloutEngine,
    requests: list[Request],
    params: SamplingParams,
    talk: Talk,
    ended: Callable[[list[Rollout]], None] = nothing_to_do,
) -> list[Rollout]:
    """All requests of this rank to their end, in request order; the first turn of each is what `generate` gives, and `ended` is
    what it is there."""
    conversations = {(r.prompt_id, r.sample): Conversation(r, *talk.open(r)) for r in requests}
    running = dict(conversations)
    try:
        rollouts = _converse(engine, running, params, talk, ended)
    finally:
        for conversation in running.values():
            conversation.close()
    return [rollouts[key] for key in conversations]


def _converse(
    engine: RolloutEngine,
    running: dict[tuple[str, int], Conversation],
    params: SamplingParams,
    talk: Talk,
    ended: Callable[[list[Rollout]], None],
) -> dict[tuple[str, int], Rollout]:
    """All of `running` to their end, when they leave it."""
    rollouts: dict[tuple[str, int], Rollout] = {}
    room = threading.Semaphore(CONCURRENCY)
    waiting: dict[tuple[str, int], Conversation] = {}
    for conversation in running.values():
        ask(engine, conversation, params, talk)
    while True:
        heartbeat.beat()
        for conversation in answered(engine, waiting, talk):
            go_on(engine, conversation, params, talk)
        busy = engine.busy()
        for turn in engine.step() if busy else []:
            conversation = running[turn.prompt_id, turn.sample]
            conversation.hear(turn)
            if call_tools(engine, conversation, turn, talk, room):
                waiting[turn.prompt_id, turn.sample] = conversation
        over = {key for key, conversation in running.items() if conversation.finish_reason is not None}
        if over:
            done = of_first(engine, [running[key].rollout() for key in sorted(over)])
            rollouts |= {(rollout.prompt_id, rollout.sample): rollout for rollout in done}
            for key in over:
                running.pop(key).close()
            if first(engine):
                ended(done)
        # Ranks that step together take these ways together.
        if not busy and not anyone(engine, bool(running)):
            return rollouts
        if not busy and not over:
            time.sleep(PAUSE)


def ask(engine: RolloutEngine, conversation: Conversation, params: SamplingParams, talk: Talk) -> None:
    """Has the engine sample the next turn, or ends the conversation where there is no room for one."""
    request = conversation.next_request()
    left = talk.tokens - len(request.prompt)
    if left <= 0:
        conversation.finish_reason = "length"
        return
    seed, most = params.seed + conversation.turns * TURN, min(params.max_new_tokens, left)
    engine.add([request], dataclasses.replace(params, seed=seed, max_new_tokens=most))


def call_tools(
    engine: RolloutEngine, conversation: Conversation, turn: Rollout, talk: Talk, room: threading.Semaphore
) -> bool:
    """Begins the calls of a turn, on the first rank that has it; False, and the conversation is over, where it makes none."""
    conversation.finish_reason = turn.finish_reason
    if conversation.session is None or turn.finish_reason != "stop":
        return False
    calls = talk.protocol.calls(turn.response[:-1], conversation.session.tools)
    if not calls:
        return False
    conversation.finish_reason, conversation.answers, conversation.since = None, None, time.monotonic()
    conversation.calls += len(calls)
    if first(engine):
        # Daemons: a tool that never ends must not keep the process from ending.
        threading.Thread(target=_call, args=(conversation, calls, room), daemon=True).start()
    return True


def _call(conversation: Conversation, calls: list[dict], room: threading.Semaphore) -> None:
    if hasattr(conversation.session, "prepare"):
        # Outside of the room, where those would wait for it for whom this one waits.
        conversation.since = math.inf
        try:
            conversation.session.prepare()
        except Exception as error:  # noqa: BLE001 - nobody else would end this conversation
            conversation.failed, conversation.answers = f"{type(error).__name__}: {error}", []
            return
        conversation.since = time.monotonic()
    with room:
        answers = []
        for call in calls:
            try:
                answers.append(shortened(str(conversation.session.call(call["name"], call["arguments"]))))
            except SandboxError as error:
                conversation.failed = f"{type(error).__name__}: {error}"
                break
            except Exception as error:  # noqa: BLE001 - whatever a tool does, the model is told and the step goes on
                conversation.errors += 1
                answers.append(shortened(f"Error: {type(error).__name__}: {error}"))
    conversation.answers = answers


def answered(engine: RolloutEngine, waiting: dict[tuple[str, int], Conversation], talk: Talk) -> list[Conversation]:
    """The conversations whose tools have answered or taken too long, no longer waiting; the same on all tensor ranks."""
    if not waiting:
        return []
    now = time.monotonic()
    ready = {
        key: (conversation.answers, conversation.errors, conversation.failed, getattr(conversation.session, "finished", False))
        for key, conversation in waiting.items()
        if conversation.answers is not None or now - conversation.since > talk.timeout
    }
    done = []
    for key, (answers, errors, failed, finished) in of_first(engine, ready).items():
        conversation = waiting.pop(key)
        conversation.answers, conversation.errors, conversation.failed = answers, errors, failed
        conversation.finished = finished
        done.append(conversation)
    return done


def go_on(engine: RolloutEngine, conversation: Conversation, params: SamplingParams, talk: Talk) -> None:
    """Tells a conversation what its tools said and asks for its next turn, where there is one to come."""
    if conversation.answers is None:
        conversation.finish_reason, conversation.errors = "tool_timeout", conversation.errors + 1
    elif conversation.failed is not None:
        conversation.finish_reason = "tool_failed"
    elif conversation.finished:
        conversation.finish_reason = "stop"
    elif conversation.turns >= min(talk.turns, conversation.session.max_steps):
        conversation.finish_reason = "turns"
    else:
        told = talk.protocol.told(conversation.answers, conversation.thinking)
        if len(conversation.request.prompt) + len(conversation.response) + len(told) >= talk.tokens:
            conversation.finish_reason = "length"
            return
        conversation.append(told, [0.0] * len(told), 0)
        ask(engine, conversation, params, talk)


def of_first(engine: RolloutEngine, value):
    """The first holder's `value`, where several have the same conversations: only there tools were called."""
    group = engine.holders()
    if group is None or group.size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, group_src=0, group=group)
    return box[0]


def anyone(engine: RolloutEngine, waits: bool) -> bool:
    """Whether any rank that steps together with this one has a conversation left."""
    group = engine.stepping()
    if group is None or group.size() == 1:
        return waits
    flag = torch.tensor(int(waits), device="cuda")
    dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=group)
    return bool(flag)


def nothing_left() -> None:
    """How a session without `close` ends."""
