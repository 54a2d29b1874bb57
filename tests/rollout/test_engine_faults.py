"""An engine that cannot go on, whichever it is, ends the sampling of all ranks with its cause, and none waits for another."""

from tests.helpers import run_distributed


def sampled(broken: int) -> str:
    """What a rank hears where the engine of rank `broken` raises in its second step."""
    import torch.distributed as dist

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.rollout.engine import EngineError, generate_global
    from nemo_cascade.rollout.types import Request, Rollout, SamplingParams

    class Engine:
        def __init__(self):
            self.waiting: list[Request] = []

        def sharing(self):
            return dist.group.WORLD

        def holders(self):
            return None

        def add(self, requests, params):
            self.waiting = list(requests)
            self.steps = 0

        def busy(self):
            return bool(self.waiting)

        def step(self):
            self.steps += 1
            if parallel.rank() == broken and self.steps == 2:
                raise EngineError(f"rank {broken}: out of cache")
            asked = self.waiting.pop(0)
            return [Rollout(asked.prompt_id, asked.sample, list(asked.prompt), [2], [-0.5], "stop")]

        def rest(self):
            pass

    parallel.init(MegatronConfig())
    requests = [Request(f"{number:02x}", sample, (5,)) for number in range(2) for sample in range(2)]
    try:
        return ", ".join(f"{r.prompt_id} {r.sample}" for r in generate_global(Engine(), requests, SamplingParams()))
    except EngineError as error:
        return str(error)


def test_an_engine_that_raises_stops_every_rank_with_the_cause():
    assert run_distributed(sampled, 2, 1) == ["rank 1: out of cache"] * 2
    assert run_distributed(sampled, 2, 2) == ["00 0, 00 1, 01 0, 01 1"] * 2, "no rank of that number"
