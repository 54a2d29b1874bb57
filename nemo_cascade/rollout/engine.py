"""What a rollout engine is: requests go in, finished rollouts come out, one step at a time.

Stepped, because agents and slow rewards need to act between steps. Under tensor parallel every rank must make the same calls with
the same requests in the same order; `generate_global` does so for a batch that all ranks know.
"""

import logging
from collections.abc import Callable, Collection
from typing import Protocol

import torch.distributed as dist

from nemo_cascade import heartbeat
from nemo_cascade.data.rows import DataError
from nemo_cascade.rollout.types import Request, Rollout, SamplingParams
from nemo_cascade.sandbox import SandboxError

logger = logging.getLogger(__name__)


class EngineError(RuntimeError):
    """An engine cannot go on; says on which rank and why."""


class RolloutEngine(Protocol):
    """`megatron` (embedded) and `vllm`; anything with these verbs.

    beside: whether it samples by itself, while this process trains.
    """

    beside: bool

    def sharing(self) -> dist.ProcessGroup:
        """The ranks that each take a share of the requests; those outside of a rank's group have groups of their own."""

    def holders(self) -> dist.ProcessGroup | None:
        """The ranks that hold one engine together, get the same requests and make the same calls; None: this one alone."""

    def stepping(self) -> dist.ProcessGroup | None:
        """The ranks, of these and other requests, none of which can step without the others; None: no others than the holders."""

    def add(self, requests: list[Request], params: SamplingParams) -> None:
        """Queues requests."""

    def step(self) -> list[Rollout]:
        """One forward pass; returns the rollouts that ended with it."""

    def busy(self) -> bool:
        """Whether any request of any rank that must step together is unfinished (the same answer on those ranks)."""

    def abort(self, ids: set[tuple[str, int]]) -> None:
        """Forgets the requests with these (prompt_id, sample)."""

    def sync(self, policy) -> None:
        """Brings the engine's weights up to the policy's; called before requests are added."""

    def rest(self) -> None:
        """Nothing more is asked until the next `sync`."""


def nothing_to_do(rollouts: list[Rollout]) -> None:
    """Where nobody waits for single rollouts."""


def generate(
    engine: RolloutEngine,
    requests: list[Request],
    params: SamplingParams,
    ended: Callable[[list[Rollout]], None] = nothing_to_do,
) -> list[Rollout]:
    """All requests of this rank to their end, in request order; `ended` is given rollouts as soon as they are there, on one of the ranks
    that have the same ones."""
    engine.add(requests, params)
    finished = {}
    while engine.busy():
        heartbeat.beat()
        rollouts = engine.step()
        finished |= {(rollout.prompt_id, rollout.sample): rollout for rollout in rollouts}
        if rollouts and first(engine):
            ended(rollouts)
    return [finished[request.prompt_id, request.sample] for request in requests]


def first(engine: RolloutEngine) -> bool:
    """Whether this rank speaks for those that have the same requests."""
    holders = engine.holders()
    return holders is None or holders.rank() == 0


def generate_global(
    engine: RolloutEngine, requests: list[Request], params: SamplingParams, run: Callable = generate
) -> list[Rollout]:
    """Every rank passes the same requests and gets all rollouts, in request order; the engine's sharing ranks share the work.

    run: what a rank does with its share, as `generate`. Raises EngineError on every rank when the engine of one fails, and so DataError
    and SandboxError; only where ranks step together, those that wait for the failing one's part of a step hear nothing but its end."""
    mine = share_of_rank(engine, requests)
    try:
        rollouts: list[Rollout] | Exception = run(engine, mine, params)
        engine.rest()
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks must not wait for ever
        rollouts = told(error, engine, mine)
        if steps_together(engine):
            # The others are inside of a step, not in the exchange below: with the end of this process theirs comes, too.
            raise rollouts from error
        logger.error("%s", rollouts, exc_info=error)
    group = engine.sharing()
    parts = [rollouts] * group.size()
    if len(parts) > 1:
        dist.all_gather_object(parts, rollouts, group=group)
    for part in parts:
        if isinstance(part, Exception):
            raise part
    found = {(rollout.prompt_id, rollout.sample): rollout for part in parts for rollout in part}
    return [found[request.prompt_id, request.sample] for request in requests]


def told(error: Exception, engine: RolloutEngine, requests: list[Request]) -> Exception:
    """What a rank's engine raised over its requests, as an error that any rank can raise."""
    if isinstance(error, EngineError | DataError | SandboxError):
        return error
    at = at_work([f"{request.prompt_id}/{request.sample}" for request in requests])
    return EngineError(f"{type(engine).__name__} on rank {dist.get_rank()} failed{at}: {type(error).__name__}: {error}")


def at_work(names: Collection[str]) -> str:
    """ " at request ab/0 and 3 more", or nothing where there is none."""
    return f" at request {next(iter(names))} and {len(names) - 1} more" if names else ""


def steps_together(engine: RolloutEngine) -> bool:
    """Whether a rank that stops keeps others inside of a step."""
    return any(group is not None and group.size() > 1 for group in (engine.holders(), engine.stepping()))


def share_of_rank(engine: RolloutEngine, requests: list[Request]) -> list[Request]:
    """Those of all ranks' requests that are this rank's."""
    group = engine.sharing()
    return share(requests, group.size())[group.rank()]


def share(requests: list[Request], ranks: int) -> list[list[Request]]:
    """Deals whole prompts to ranks, longest first, so that a prompt is prefilled once and ranks finish together."""
    prompts: dict[str, list[Request]] = {}
    for request in requests:
        prompts.setdefault(request.prompt_id, []).append(request)
    ordered = sorted(prompts.values(), key=lambda group: (-len(group[0].prompt), group[0].prompt_id))
    return [[request for group in ordered[rank::ranks] for request in group] for rank in range(ranks)]
