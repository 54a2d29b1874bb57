"""How long do the rewards of an RL step take, from the last reply to the last verdict? (BAR: 512 rollouts of all domains, 3 s)

    python benchmarks/rewards.py --rollouts 512 --repeats 5 --out rewards.json

The demo's rows of every domain that is verified, eight replies each, of which half are right and half are right for another row;
model-written programs run in the sandbox. All are verified after sampling, where a stage begins with the first reply that ends. The
first step also starts the workers. Prints seconds of the first step, and the median of the others; each has rows of its own.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from rich.console import Console

from nemo_cascade.data.chat import conversation_to_samples
from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.rollout.types import Group, Rollout
from nemo_cascade.stages.rewards import verify_all

BAR = 3.0
GROUP = 8
VERIFIED = [name for name in DOMAINS if name != "preference"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("rewards.json"))
    args = parser.parse_args()
    tokenizer, seconds, right = load_tokenizer("tiny"), [], []
    for repeat in range(args.repeats + 1):
        groups = drawn(args.rollouts // GROUP, repeat, tokenizer)
        begun = time.perf_counter()
        verdicts = verify_all(groups, tokenizer)
        seconds.append(time.perf_counter() - begun)
        right.append(statistics.mean(verdict["reward"] > 0 for of_group in verdicts for verdict in of_group))
    told = {"rollouts": args.rollouts, "domains": VERIFIED, "first": seconds[0], "median": statistics.median(seconds[1:]), "right": right}
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    said = f"{args.rollouts} rollouts of {len(VERIFIED)} domains: {told['median']:.2f} s, the first step {told['first']:.2f} s, beside {BAR:.0f} s"
    Console(width=120).print(f"{said}; of the replies {statistics.mean(right):.0%} earn something")


def drawn(prompts: int, seed: int, tokenizer) -> list[Group]:
    """Rows of the domains in turn, with replies whose thoughts differ, so that none is verified for another."""
    each = -(-prompts // len(VERIFIED)) + 1
    found = []
    for name in VERIFIED:
        domain = DOMAINS[name]
        rows = list(domain.rows(each, "train", seed, level="demo"))
        shown = [conversation_to_samples(tokenizer, domain.demonstration(row, number))[-1] for number, row in enumerate(rows)]
        replies = [[token for token, own in zip(sample.tokens, sample.loss_mask) if own] for sample in shown]
        found.append([(row, name, replies[place], replies[place - 1]) for place, row in enumerate(rows)][:-1])
    rows = [row for several in zip(*found) for row in several][:prompts]
    return [
        Group(row, name, [rollout(tokenizer, number, k, (wrong, right)[k % 2]) for k in range(GROUP)])
        for number, (row, name, right, wrong) in enumerate(rows)
    ]


def rollout(tokenizer, prompt: int, sample: int, reply: list[int]) -> Rollout:
    tokens = [*tokenizer.encode(str(sample), add_special_tokens=False), *reply]
    return Rollout(f"{prompt:016x}", sample, [10, 3], tokens, [-0.5] * len(tokens), "stop")


if __name__ == "__main__":
    main()
