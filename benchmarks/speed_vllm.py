"""vLLM's side of `speed.py`: the weights of our side pushed into an engine a process, and decoded by it as a stage has it do."""

from pathlib import Path

from speed import TAIL, clock, read, since
from speed_ours import build, decoder, decoding

from nemo_cascade.rollout.config import VllmConfig
from nemo_cascade.rollout.types import Request, SamplingParams
from nemo_cascade.rollout.vllm import VllmEngine


def decode(folder: Path):
    """Replies of one length, as on the other sides."""
    return decoding(*vllm_decoder(folder), ())


def decode_tail(folder: Path):
    """Replies that end at their lengths, which vLLM is told as limits and makes no use of before."""
    engine, mine = vllm_decoder(folder)
    lengths = read(folder)["tail"]
    seeds = iter(range(1_000_000))

    def step():
        started, seed, rollouts = clock(), next(seeds), []
        for request in mine:
            length = lengths[int(request.prompt_id, 16)]
            engine.add([request], SamplingParams(max_new_tokens=length, stop_ids=(), seed=seed))
        while engine.busy():
            rollouts += engine.step()
        assert all(len(rollout.response) == lengths[int(rollout.prompt_id, 16)] for rollout in rollouts) and len(rollouts) == len(mine)
        return since(started), None

    return step


def vllm_decoder(folder: Path) -> tuple[VllmEngine, list[Request]]:
    """An engine with the folder's weights, and this rank's requests."""
    policy = build(folder)
    generation = policy.config.generation
    generation.vllm_cfg = VllmConfig(max_model_len=1024)
    _, mine = decoder(folder, policy)
    engine = VllmEngine(policy.preset, generation, policy.config.precision)
    engine.sync(policy)
    assert max(len(request.prompt) for request in mine) + TAIL[-1] <= 1024
    return engine, mine
