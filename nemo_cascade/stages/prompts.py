"""Prompts of an RL stage: rows of all its domains, drawn by share, in an order that can be resumed, then rendered."""

from dataclasses import dataclass

from nemo_cascade.data.chat import render_prompt
from nemo_cascade.data.loader import Mixture
from nemo_cascade.data.rows import DataError, messages_of, prompt_id, tools_of
from nemo_cascade.engine import parallel
from nemo_cascade.engine.config import PolicyConfig
from nemo_cascade.stages.config import DataConfig, EnvConfig
from nemo_cascade.stages.data import Domain, load_domains


@dataclass
class Prompt:
    """A row ready to be answered: tokens end in the generation prefix."""

    id: str
    domain: str
    row: dict
    tokens: list[int]


class PromptSource:
    """`next(n)` draws n prompts from the stage's mixture; all ranks call it together, and each renders its share."""

    def __init__(self, data: DataConfig, tokenizer, policy: PolicyConfig, seed: int, env: EnvConfig = EnvConfig()):
        self.domains = load_domains(data, "train", kind="rl", env=env)
        self.tokenizer, self.policy = tokenizer, policy
        sources = {name: (len(domain.rows), domain.share) for name, domain in self.domains.items()}
        self.mixture = Mixture(sources, shuffle=data.shuffle, seed=seed)

    def next(self, n: int) -> list[Prompt]:
        """The next n prompts, the same on every rank. Raises DataError for one that leaves no room for a reply."""
        drawn = [(self.domains[name], index) for name, index in self.mixture.next(n)]
        return rendered([(domain, domain.numbers[i], domain.rows[i]) for domain, i in drawn], self.tokenizer, self.policy)

    def state_dict(self) -> dict:
        """Where each domain's order stands, as JSON values."""
        return self.mixture.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Goes on from there; the rows must be the same."""
        self.mixture.load_state_dict(state)


def render(domain: Domain, tokenizer, policy: PolicyConfig) -> list[Prompt]:
    """All prompts of a domain; as `rendered`."""
    return rendered([(domain, number, row) for number, row in zip(domain.numbers, domain.rows)], tokenizer, policy)


def rendered(rows: list[tuple[Domain, int, dict]], tokenizer, policy: PolicyConfig) -> list[Prompt]:
    """Prompts of (domain, row number, row), of which every rank, and all call this, makes its share; raises as `prompt` does."""
    # Ids only: the rows are on every rank.
    made = parallel.share_out(lambda mine: [(p.id, p.tokens) for p in (prompt(*one, tokenizer, policy) for one in mine)], rows)
    return [Prompt(name, domain.name, row, tokens) for (domain, _, row), (name, tokens) in zip(rows, made)]


def prompt(domain: Domain, number: int, row: dict, tokenizer, policy: PolicyConfig) -> Prompt:
    """A row's prompt. Raises DataError for one that leaves no room for a reply, naming file and row number."""
    room = policy.max_total_sequence_length - policy.generation.max_new_tokens
    tokens = render_prompt(tokenizer, messages_of(row), tools=tools_of(row), enable_thinking=thinking(row))
    if len(tokens) > room:
        raise DataError(
            f"{domain.path}, row {number}: the prompt has {len(tokens)} tokens, but policy.max_total_sequence_length - "
            f"policy.generation.max_new_tokens leaves {room}"
        )
    return Prompt(prompt_id(row), domain.name, row, tokens)


def thinking(row: dict) -> bool:
    """Whether the reply begins with a thought (the recipe's RL does unless a row says otherwise)."""
    return bool(row.get("enable_thinking", True))
