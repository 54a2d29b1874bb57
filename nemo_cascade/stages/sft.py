"""Supervised fine-tuning: packed documents of all domains, loss on assistant tokens, the mean over the global batch's tokens.

They are packed when the stage begins, or come packed from a folder that `nemo-cascade pack` wrote.
"""

from itertools import accumulate

from nemo_cascade import heartbeat
from nemo_cascade.algorithms import negative_log_likelihood
from nemo_cascade.data.chat import conversation_to_samples
from nemo_cascade.data.loader import Loader, Mixture
from nemo_cascade.data.packed_dataset import PackedDataset
from nemo_cascade.data.packing import pack
from nemo_cascade.data.rows import DataError
from nemo_cascade.data.sample import Sample
from nemo_cascade.engine import parallel
from nemo_cascade.engine.policy import Policy
from nemo_cascade.stages.context import StageRun
from nemo_cascade.stages.data import Domain, load_domains
from nemo_cascade.stages.metrics import train_metrics
from nemo_cascade.stages.start import resume_or_begin
from nemo_cascade.stages.step import finish_step
from nemo_cascade.stages.stopwatch import Stopwatch
from nemo_cascade.stages.validations import Validations


def run(stage: StageRun) -> None:
    """Trains to `sft.max_num_steps`, from the newest checkpoint of the stage or from its parent (or from scratch)."""
    config = stage.config
    policy = Policy(config.policy, seed=stage.seed, max_num_steps=config.sft.max_num_steps)
    packed = config.data.packed_folder
    packs = PackedDataset(packed) if packed else packed_documents(stage, policy)
    loader = Loader(len(packs), config.policy.train_global_batch_size, shuffle=config.data.shuffle, seed=stage.seed)
    info = resume_or_begin(stage, policy)
    loader.load_state_dict(info["loader"]) if info else None

    validations, watch = Validations(stage, config.sft, done=policy.step), Stopwatch()
    with stage.progress(config.sft.max_num_steps, stage.name, done=policy.step) as bar:
        while policy.step < config.sft.max_num_steps and not validations.stopped:
            watch.start()
            chosen = [packs[index] for index in loader.next()]
            batch = [sample for pack in chosen for sample in pack]
            # What was packed to the last token beforehand stays so.
            plan = ranges([len(pack) for pack in chosen]) if packed else None
            watch.lap("data_processing")
            metrics = policy.train_step(batch, sft_loss, as_sampled=False, plan=plan)
            metrics["tokens"] = sum(len(sample.tokens) - 1 for sample in batch)
            watch.lap("policy_training")
            logged = train_metrics(metrics, watch.read()) | validations.after(policy.step, policy)
            watch.start()
            stage.log(logged, policy.step)
            bar.advance(loss=metrics["loss"])
            finish_step(stage, policy, validations, lambda: {"loader": loader.state_dict()}, watch)


def sft_loss(logprobs, pack):
    """Token mean of -log p over assistant tokens."""
    total, count = negative_log_likelihood(logprobs, pack.mask)
    return total, count, {}


def ranges(sizes: list[int]) -> list[list[int]]:
    """Consecutive numbers from 0, so many in each: [2, 1] -> [[0, 1], [2]]."""
    ends = list(accumulate(sizes))
    return [list(range(end - size, end)) for size, end in zip(sizes, ends)]


def packed_documents(stage: StageRun, policy: Policy) -> list[list[Sample]]:
    """One epoch of the mixture as packs of at most `train_mb_tokens` tokens.

    An epoch draws as many documents as there are, by `share` (equal unless told), so a domain with more than its share
    of documents is not seen whole and a smaller one is repeated.
    Raises DataError for a document longer than `policy.max_total_sequence_length`, naming its file and row.
    """
    config = stage.config
    domains = load_domains(config.data, "train", kind="sft")
    samples = {name: documents(domain, policy) for name, domain in domains.items()}
    sources = {name: (len(samples[name]), domains[name].share) for name in samples}
    mixture = Mixture(sources, shuffle=config.data.shuffle, seed=stage.seed)
    order = mixture.next(sum(len(rows) for rows in samples.values()))
    ordered = [samples[name][index] for name, index in order]
    lengths = [len(sample.tokens) - 1 for sample in ordered]
    plan = pack(lengths, config.policy.sequence_packing.train_mb_tokens, decreasing=False)
    return [[ordered[index] for index in indices] for indices in plan]


def documents(domain: Domain, policy: Policy) -> list[Sample]:
    """All training samples of a domain's conversations; the ranks share the rendering."""
    limit = policy.config.max_total_sequence_length

    def render(numbered: tuple[int, dict]) -> list[Sample]:
        heartbeat.beat()
        number, row = numbered
        samples = conversation_to_samples(policy.tokenizer, row)
        for sample in samples:
            if len(sample.tokens) > limit:
                raise DataError(
                    f"{domain.path}, row {number}: {len(sample.tokens)} tokens are more than "
                    f"policy.max_total_sequence_length={limit}; shorten the row or raise the limit"
                )
        return samples

    numbered = list(zip(domain.numbers, domain.rows))
    rendered = parallel.share_out(lambda rows: [render(row) for row in rows], numbered)
    return [sample for samples in rendered for sample in samples]
