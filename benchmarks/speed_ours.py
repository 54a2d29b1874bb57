"""Our side of `speed.py`, and the workload of both.

Every function returns a step: () -> ((seconds, CPU seconds), loss or None).
"""

import json
import random
from pathlib import Path

import torch
from speed import (
    DECODE_BATCH,
    DOCUMENT,
    DOMAINS,
    GROUP,
    GRPO_PROMPTS,
    LEARNING_RATE,
    MATRIX,
    NEW_TOKENS,
    PACK_TOKENS,
    PACKS,
    PROMPT,
    TAIL,
    clock,
    read,
    reward,
    since,
)
from speed_flops import SHAPE_20M, counted_flops, linear_flops, training_flops

from nemo_cascade.data import demo
from nemo_cascade.data.chat import conversation_to_samples, encode, render
from nemo_cascade.data.packing import pack
from nemo_cascade.data.rows import messages_of, tools_of
from nemo_cascade.data.sample import Sample
from nemo_cascade.engine import parallel
from nemo_cascade.engine.config import MegatronConfig, OptimizerConfig, PolicyConfig, SequencePackingConfig
from nemo_cascade.engine.policy import Policy
from nemo_cascade.models.hf_folder import write_hf
from nemo_cascade.models.presets import PRESETS
from nemo_cascade.rollout.engine import generate, generate_global, share
from nemo_cascade.rollout.megatron import MegatronEngine
from nemo_cascade.rollout.types import Group, Request, SamplingParams
from nemo_cascade.stages.config import GRPOConfig, LossConfig
from nemo_cascade.stages.prompts import Prompt
from nemo_cascade.stages.rewards import reply_text
from nemo_cascade.stages.loss import make_loss
from nemo_cascade.stages.rl import reward_samples
from nemo_cascade.stages.rollouts import make_engine, make_requests
from nemo_cascade.stages.sft import sft_loss

NO_STOP = (-1,)  # so that every reply has all its tokens


def build(folder: Path) -> Policy:
    """The preset that the folder is named after from one seed, the same weights in every process and layout."""
    PRESETS.setdefault(SHAPE_20M.name, SHAPE_20M)
    # As in conf/tiny.yaml.
    optimizer = OptimizerConfig(lr=LEARNING_RATE, min_lr=LEARNING_RATE, use_distributed_optimizer=False)
    packing = SequencePackingConfig(train_mb_tokens=PACK_TOKENS)
    megatron = MegatronConfig(optimizer=optimizer)
    config = PolicyConfig(model_name=folder.name, sequence_packing=packing, megatron_cfg=megatron)
    parallel.init(config.megatron_cfg)
    return Policy(config, seed=0, max_num_steps=1_000_000)


def prepare(folder: Path):
    """Writes the weights and workload.json; the step's answer is each row's work: tokens, and training's operations."""
    policy = build(folder)
    write_hf(policy.hf_weights(), policy.preset, folder)
    policy.tokenizer.save_pretrained(folder)
    documents, texts = demo_texts(policy.tokenizer)
    prompts = [encode(policy.tokenizer, text) for text in texts]
    tail = random.Random(1).choices(TAIL, k=DECODE_BATCH)
    work = {
        "documents": [{"tokens": document.tokens, "loss_mask": document.loss_mask} for document in documents],
        "prompts": prompts[:DECODE_BATCH],
        "tail": tail,
        "texts": texts[:GRPO_PROMPTS],
    }
    (folder / "workload.json").write_text(json.dumps(work))
    lengths = [len(document.tokens) - 1 for document in documents]
    trained = sum(sum(document.loss_mask[1:]) for document in documents)
    work = {
        "training": {"tokens": sum(lengths), "flops": training_flops(policy.preset, lengths, trained)},
        "decode": {"tokens": DECODE_BATCH * NEW_TOKENS},
        "decode_tail": {"tokens": sum(tail)},
        "grpo": {"tokens": GRPO_PROMPTS * GROUP * NEW_TOKENS},
    }

    def step():
        counted = counted_flops(lambda: policy.train_step(documents, sft_loss, as_sampled=False))
        products = sum(counted.get(f"aten.{name}", 0) for name in ("mm", "addmm", "addmm_"))
        formula = linear_flops(policy.preset, sum(lengths), trained)
        assert abs(products / formula - 1) < 1e-3, f"the formula says {formula} operations, torch counts {counted}"
        work["training"] |= {"flops_of_weights": formula, "flops_counted_by_torch": counted}
        return (0.0, 0.0), work

    return step


def rate(folder: Path):
    """A square float32 matrix product by one thread, as fast as it came out in a tenth of a second or more."""
    torch.set_num_threads(1)
    one, other = torch.rand(2, MATRIX, MATRIX)
    out = torch.empty_like(one)

    def step():
        spent = []
        until = clock()[0] + 0.1
        while not spent or clock()[0] < until:
            started = clock()
            torch.mm(one, other, out=out)
            spent.append(since(started))
        return min(spent), None

    return step


def demo_texts(tokenizer) -> tuple[list[Sample], list[str]]:
    """Documents that fill PACKS packs, and prompts, of the demo's domains in turn."""
    documents, texts = [], []
    for name in DOMAINS:
        domain = demo.DOMAINS[name]
        for number, row in enumerate(domain.rows(60, "train", level="demo")):
            documents += conversation_to_samples(tokenizer, domain.demonstration(row, number))
        for row in domain.rows(60, "train", level="rl"):
            texts.append(render(tokenizer, messages_of(row), tools_of(row), add_generation_prompt=True))
    rng = random.Random(0)
    documents = [document for document in documents if len(document.tokens) - 1 in DOCUMENT]
    texts = [text for text in texts if len(encode(tokenizer, text)) in PROMPT]
    rng.shuffle(documents)
    rng.shuffle(texts)
    packs = pack([len(document.tokens) - 1 for document in documents], PACK_TOKENS, decreasing=False)[:PACKS]
    return [documents[index] for indices in packs for index in indices], texts


def training(folder: Path):
    """One SFT step, as the sft stage takes it."""
    policy = build(folder)
    samples = [Sample(document["tokens"], document["loss_mask"]) for document in read(folder)["documents"]]

    def step():
        started = clock()
        metrics = policy.train_step(samples, sft_loss, as_sampled=False)
        return since(started), metrics["loss"]

    return step


def decode(folder: Path):
    """Replies to different prompts, so none is prefilled once for several; data-parallel ranks share them."""
    return decoding(*decoder(folder), NO_STOP)


def decoding(engine, mine: list[Request], stop_ids: tuple[int, ...]):
    """The step of an engine that decodes replies of one length."""
    seeds = iter(range(1_000_000))

    def step():
        started = clock()
        rollouts = generate(engine, mine, SamplingParams(max_new_tokens=NEW_TOKENS, stop_ids=stop_ids, seed=next(seeds)))
        assert all(len(rollout.response) == NEW_TOKENS for rollout in rollouts)
        return since(started), None

    return step


def decode_tail(folder: Path):
    """The same with replies that stop after lengths which the engine does not know."""
    engine, mine = decoder(folder)
    lengths = read(folder)["tail"]
    seeds = iter(range(1_000_000))

    def step():
        started, seed, rollouts = clock(), next(seeds), []
        for request in mine:
            stop = After(lengths[int(request.prompt_id, 16)])
            engine.add([request], SamplingParams(max_new_tokens=TAIL[-1], stop_ids=stop, seed=seed))
        while engine.busy():
            rollouts += engine.step()
        assert len(rollouts) == len(mine)
        assert all(len(rollout.response) == lengths[int(rollout.prompt_id, 16)] for rollout in rollouts)
        return since(started), None

    return step


class After:
    """Stop tokens of one reply: whatever its n-th token is."""

    def __init__(self, n: int):
        self.left = n

    def __contains__(self, token: int) -> bool:
        self.left -= 1
        return not self.left


def decoder(folder: Path, policy: Policy | None = None) -> tuple[MegatronEngine, list[Request]]:
    """An engine, and a request of this rank for each of its prompts, numbered as in the workload."""
    policy = policy or build(folder)
    requests = [Request(f"{number:016x}", 0, tuple(prompt)) for number, prompt in enumerate(read(folder)["prompts"])]
    group = parallel.parallel_state.get_data_parallel_group()
    return make_engine(policy), share(requests, group.size())[group.rank()]


def grpo(folder: Path):
    """One step of the rl stage: rollouts, rewards, advantages, and the update, which makes its log-probs itself."""
    policy = build(folder)
    engine = make_engine(policy)
    texts = read(folder)["texts"]
    prompts = [Prompt(f"{n:016x}", "demo", {}, encode(policy.tokenizer, text)) for n, text in enumerate(texts)]
    config, loss = GRPOConfig(), make_loss(LossConfig(), distil=False)

    def step():
        started = clock()
        params = SamplingParams(max_new_tokens=NEW_TOKENS, stop_ids=NO_STOP, seed=policy.step)
        rollouts = generate_global(engine, make_requests(prompts, GROUP), params)
        for rollout in rollouts:
            assert len(rollout.response) == NEW_TOKENS
            rollout.reward = reward(reply_text(rollout, policy.tokenizer))
        groups = [Group({}, "demo", rollouts[i : i + GROUP]) for i in range(0, len(rollouts), GROUP)]
        policy.train_step(reward_samples(groups, config), loss)
        return since(started), None

    return step
