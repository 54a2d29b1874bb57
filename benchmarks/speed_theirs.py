"""The other side of `speed.py`: transformers' NemotronHForCausalLM and TRL's GRPOTrainer, used well on a CPU.

Every function gets the folder with the exported weights and the workload, and returns a step:
() -> ((seconds, CPU seconds), loss or None). Without CUDA kernels transformers' Mamba layers cannot keep documents of
one row apart, so documents are padded, never packed.
"""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from speed import GROUP, GRPO_PROMPTS, LEARNING_RATE, NEW_TOKENS, clock, read, reward, since
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

# The fastest of the few that were tried with the tiny preset: chunks of 16, 32, 64 and 128, eager, grouped and batched
# experts, 1, 2 and 4 batches. Between neighbours the difference was within noise. The scan's chunk changes no result.
CHUNK, EXPERTS, MICROBATCHES = 32, "grouped_mm", 4


def training(folder: Path):
    """Documents sorted by length, in padded batches; data parallel by torch's DistributedDataParallel."""
    work = read(folder)
    rank, size = join_world()
    model = load(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    wrapped = DistributedDataParallel(model) if size > 1 else model
    documents = sorted(work["documents"], key=lambda document: len(document["tokens"]))
    total = sum(sum(document["loss_mask"][1:]) for document in documents)
    mine = documents[rank::size]
    cuts = [len(mine) * i // MICROBATCHES for i in range(MICROBATCHES + 1)]
    batches = [padded(mine[first:last]) for first, last in zip(cuts, cuts[1:])]

    def step():
        started = clock()
        loss = 0.0
        for number, (tokens, labels) in enumerate(batches):
            if size > 1:
                # Gradients cross once, with the last batch.
                wrapped.require_backward_grad_sync = number == len(batches) - 1
            # No layer looks to the right, where the padding is; without a mask attention takes its faster path.
            logits = wrapped(input_ids=tokens, use_cache=False).logits
            nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum") / total
            (nll * size).backward()
            loss += nll.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss = torch.tensor(loss)
        if size > 1:
            dist.all_reduce(loss)
        return since(started), float(loss)

    return step


def decode(folder: Path):
    """`generate` with its cache on prompts padded on the left."""
    return decoding(folder, [NEW_TOKENS] * len(read(folder)["prompts"]))


def decode_tail(folder: Path):
    """The same until the longest reply has ended."""
    return decoding(folder, read(folder)["tail"])


def decoding(folder: Path, lengths: list[int]):
    """Replies of at least these lengths, all of a rank's as long as its longest."""
    work = read(folder)
    rank, size = join_world()
    model = load(folder).eval()
    mine = sorted(zip(work["prompts"], lengths), key=lambda pair: len(pair[0]))[rank::size]
    prompts, new_tokens = [prompt for prompt, _ in mine], max(length for _, length in mine)
    tokens = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True, padding_side="left")
    lengths = torch.tensor([[len(prompt)] for prompt in prompts])
    mask = (torch.arange(tokens.shape[1]) >= tokens.shape[1] - lengths).long()

    def step():
        started = clock()
        replies = model.generate(
            tokens,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            use_cache=True,
        )
        assert replies.shape == (len(prompts), tokens.shape[1] + new_tokens)
        return since(started), None

    return step


def grpo(folder: Path):
    """One step of TRL's trainer: no KL term, one update a batch, so that it too makes no second pass for log-probs."""
    # The other rows need neither.
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    stopwatch = Stopwatch()
    trainer = GRPOTrainer(
        model=load(folder),
        processing_class=AutoTokenizer.from_pretrained(folder),
        reward_funcs=rewards,
        train_dataset=Dataset.from_list([{"prompt": text} for text in read(folder)["texts"]]),
        callbacks=[stopwatch],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=GRPO_PROMPTS * GROUP // processes,
            num_generations=GROUP,
            max_completion_length=NEW_TOKENS,
            generation_kwargs={"min_new_tokens": NEW_TOKENS},
            beta=0.0,
            num_iterations=1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            max_grad_norm=1.0,
            max_steps=1,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    # It prints a line after every run.
    trainer.remove_callback(PrinterCallback)

    def step():
        trainer.train()
        return stopwatch.spent, None

    return step


class Stopwatch(TrainerCallback):
    """Times the step alone: `train` sets up a run each time."""

    def on_step_begin(self, *_, **__):
        self.started = clock()

    def on_step_end(self, *_, **__):
        self.spent = since(self.started)


def rewards(completions, completion_ids, **_) -> list[float]:
    assert all(len(ids) == NEW_TOKENS for ids in completion_ids)
    return [reward(text) for text in completions]


def load(folder: Path):
    config = AutoConfig.from_pretrained(folder)
    config.chunk_size = CHUNK
    return AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="sdpa", experts_implementation=EXPERTS
    )


def join_world() -> tuple[int, int]:
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def padded(documents: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels (-100 where nothing is trained) [documents, longest], padded on the right."""

    def rows(values, fill):
        return pad_sequence([torch.tensor(row) for row in values], batch_first=True, padding_value=fill)

    labels = [
        [token if trained else -100 for token, trained in zip(d["tokens"][1:], d["loss_mask"][1:])] for d in documents
    ]
    inputs = [d["tokens"][:-1] for d in documents]
    return rows(inputs, 0), rows(labels, -100)
