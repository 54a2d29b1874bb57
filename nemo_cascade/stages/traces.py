"""Some rollouts of every step as texts that a person can read: `traces/step_N.jsonl`, one rollout a line.

They are what `nemo-cascade report` shows; the files in `rollouts/` hold all of them, as tokens, for the training to resume from.
A step that is repeated after a kill writes its file anew, the same. Nothing here is synced: a file may be cut at its end.
Left out: replies of validations.
"""

import json
from pathlib import Path

from nemo_cascade.data.sample import Sample
from nemo_cascade.rollout.types import Group, Rollout
from nemo_cascade.stages.context import StageRun

FOLDER = "traces"
# What a row or a verdict says beside texts, in characters of JSON; hidden tests and documents can be as long as books.
LONGEST_VALUE = 400
# Bytes that make no character yet: the rest of it is in the next token.
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
MOST_TOKENS_OF_A_CHARACTER = 4


class Traces:
    """Keeps `logger.rollouts_per_step` rollouts of a step; rank 0 writes."""

    def __init__(self, stage: StageRun, tokenizer):
        self.folder, self.tokenizer = Path(stage.dir) / FOLDER, tokenizer
        self.count = stage.config.logger.rollouts_per_step if stage.rank == 0 else 0

    def write(self, step: int, groups: list[Group], samples: list[Sample]) -> None:
        """samples: those of all rollouts, in their order, as they are trained on."""
        if self.count <= 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = ((g, r) for g, group in enumerate(groups) for r in range(len(group.rollouts)))
        sample_of = dict(zip(numbers, samples))
        lines = [
            json.dumps(self.trace(step, groups[g], groups[g].rollouts[r], sample_of[g, r]))
            for g, r in chosen(groups, self.count)
        ]
        (self.folder / f"step_{step}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def trace(self, step: int, group: Group, rollout: Rollout, sample: Sample) -> dict:
        """A rollout's line. pieces: its reply, cut into tokens, with the log-prob of each when it was sampled and, where
        teachers are asked, by how much the teacher's is higher (`gaps`, whose mean is minus the reverse KL)."""
        start = len(rollout.prompt)
        ends = token_ends(self.tokenizer, rollout.response)
        starts = [0, *ends[:-1]]

        def sums(values: list[float]) -> list[float]:
            return [round(sum(values[a:b]), 3) for a, b in zip(starts, ends)]

        teacher, advantages = sample.fields.get("teacher_logprobs"), sample.fields.get("advantages")
        gaps = [t - s for t, s in zip(teacher[start:], rollout.logprobs)] if teacher is not None else None
        return {
            "step": step,
            "domain": group.domain,
            "prompt_id": rollout.prompt_id,
            "sample": rollout.sample,
            "reward": rollout.reward,
            "advantage": round(advantages[-1], 4) if advantages is not None else None,
            "trained": any(sample.loss_mask),
            "length": len(rollout.response),
            "finish_reason": rollout.finish_reason,
            "row": shortened({k: v for k, v in group.row.items() if k not in ("responses_create_params", "prompt")}),
            "verdict": shortened(rollout.info),
            "prompt": decoded(self.tokenizer, rollout.prompt),
            "pieces": [decoded(self.tokenizer, rollout.response[a:b]) for a, b in zip(starts, ends)],
            "logprobs": sums(rollout.logprobs),
            **({"gaps": sums(gaps)} if gaps is not None else {}),
        }


def chosen(groups: list[Group], count: int) -> list[tuple[int, int]]:
    """(group, rollout) of `count` rollouts: the best and the worst reply of a group, domains taking turns; the others of each
    group once every group has had its two."""
    by_domain: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        by_domain.setdefault(group.domain, []).append(number)
    turns = [(place, of_domain[place]) for of_domain in by_domain.values() for place in range(len(of_domain))]
    in_turn = [number for _, number in sorted(turns, key=lambda turn: turn[0])]
    extremes, others = [], []
    for number in in_turn:
        rewards = [rollout.reward for rollout in groups[number].rollouts]
        ranked = sorted(range(len(rewards)), key=lambda r: -rewards[r])
        two = list(dict.fromkeys([ranked[0], ranked[-1]]))
        extremes += [(number, r) for r in two]
        others += [(number, r) for r in ranked if r not in two]
    return [*extremes, *others][:count]


def token_ends(tokenizer, tokens: list[int]) -> list[int]:
    """Where tokens can be cut so that the texts of the parts make the whole text: after each token but inside a character.

    One part where a tokenizer reads its tokens otherwise alone than together.
    """
    alone = tokenizer.batch_decode([[token] for token in tokens], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    ends, start, texts = [], 0, []
    for place, text in enumerate(alone, start=1):
        text = text if place - start == 1 else decoded(tokenizer, tokens[start:place])
        if text.endswith(INCOMPLETE) and place - start < MOST_TOKENS_OF_A_CHARACTER:
            continue
        ends.append(place)
        texts.append(text)
        start = place
    if start < len(tokens):
        ends.append(len(tokens))
        texts.append(decoded(tokenizer, tokens[start:]))
    return ends if "".join(texts) == decoded(tokenizer, tokens) else [len(tokens)]


def decoded(tokenizer, tokens: list[int]) -> str:
    """The text of tokens, special ones included."""
    return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def shortened(values: dict) -> dict:
    """The values as they are where they are short, else the beginning of their JSON."""
    texts = {key: json.dumps(value) for key, value in values.items()}
    return {k: values[k] if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} ..." for k, text in texts.items()}
