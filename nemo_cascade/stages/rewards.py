"""Rewards of sampled groups: verifiers for most rows, a judge for rows whose replies can only be compared."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from nemo_cascade import environments, sandbox
from nemo_cascade.data.rows import DataError, environment_of
from nemo_cascade.engine import parallel
from nemo_cascade.rollout.types import Group, Rollout
from nemo_cascade.stages.prompts import thinking


class Comparing(Protocol):
    """What a judge can do; every rank calls it with the same groups."""

    def reward_groups(self, groups: list[Group]) -> None:
        """Fills reward and info of every rollout by comparisons inside its group."""

    def reward_by_reference(self, groups: list[Group]) -> None:
        """Fills reward and info of every rollout by a comparison with the row's reference reply."""


class Rewards:
    """alone: a judge compares replies with the row's reference reply, not with one another."""

    def __init__(self, tokenizer, judge: Comparing | None = None, *, alone: bool = False, overlong_reward: str = "zero"):
        self.tokenizer, self.judge, self.alone, self.overlong_reward = tokenizer, judge, alone, overlong_reward

    def fill(self, groups: list[Group]) -> None:
        """Fills reward and info of every rollout, the same on every rank, which all call it.

        A reply cut at the length limit earns 0 whatever it says [Nemotron-Cascade 2, section 4.2], unless
        overlong_reward is "keep". Raises DataError for rows that need a judge where there is none.
        """
        judged = [group for group in groups if environment_of(group.row) == "genrm_compare"]
        self._verify([group for group in groups if environment_of(group.row) != "genrm_compare"])
        if judged and self.judge is None:
            raise DataError(f"{judged[0].domain}: its replies are compared by a judge; set cascade.judge.stage")
        if judged:
            (self.judge.reward_by_reference if self.alone else self.judge.reward_groups)(judged)
        if self.overlong_reward == "zero":
            for rollout in (rollout for group in groups for rollout in group.rollouts):
                rollout.reward = 0.0 if rollout.finish_reason == "length" else rollout.reward

    def _verify(self, groups: list[Group]) -> None:
        # One rank asks about a group, so that a slow or random verifier cannot give ranks different rewards.
        verdicts = parallel.share_out(lambda mine: verify_all(mine, self.tokenizer), groups)
        for group, of_group in zip(groups, verdicts):
            for rollout, verdict in zip(group.rollouts, of_group):
                rollout.info = {key: value for key, value in verdict.items() if key != "reward"}
                rollout.reward = float(verdict["reward"])


def verify_all(groups: list[Group], tokenizer) -> list[list[dict]]:
    """The verdict on every reply of every group; equal replies to a row are verified once.

    Side by side where the environment waits for processes: as many as the sandbox, here a core of this rank's share each, runs.
    """
    with ThreadPoolExecutor(sandbox.get().workers) as pool:
        pending = [of_group(group, tokenizer, pool) for group in groups]
        return [[future.result() for future in futures] for futures in pending]


def of_group(group: Group, tokenizer, pool: ThreadPoolExecutor) -> list[Future]:
    """A future verdict for each reply, the same one for equal replies."""
    verifier = environment(group.row)
    verdicts: dict[str, Future] = {}
    texts = [reply_text(rollout, tokenizer) for rollout in group.rollouts]
    for text in texts:
        if text in verdicts:
            continue
        response = environments.response_of(text, thinking(group.row))
        if getattr(verifier, "IN_THREADS", False):
            verdicts[text] = pool.submit(verifier.verify, group.row, response)
        else:
            verdicts[text] = Future()
            verdicts[text].set_result(verifier.verify(group.row, response))
    return [verdicts[text] for text in texts]


def environment(row: dict):
    """The environment that verifies replies to the row."""
    return environments.get(environment_of(row))


def reply_text(rollout: Rollout, tokenizer) -> str:
    """What the model wrote, without its stop token; special tokens such as </think> stay, because verifiers need them."""
    tokens = rollout.response[:-1] if rollout.finish_reason == "stop" else rollout.response
    return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
