"""Who answers: a model behind an OpenAI-compatible endpoint, or the embedded engine in this process.

The engine's replies depend on the seed and the key of what is asked, and so are the same in every start; an endpoint is sent a seed
of the same kind, which servers as vLLM's honour as far as their batches let them.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from nemo_cascade import heartbeat
from nemo_cascade.environments.endpoint import Endpoint, EndpointConfig, EndpointError, Said, Silence
from nemo_cascade.environments.faults import KINDS
from nemo_cascade.environments.response import END_OF_THOUGHT, split_reply
from nemo_cascade.scaling.types import Ask, Reply, ScalingRefused


@dataclass
class ModelEndpoint(EndpointConfig):
    """`endpoint`: as of a judge, with the paper's sampling. timeout: seconds for a whole reply, thought included."""

    temperature: float = 1.0
    top_p: float = 0.95
    max_tokens: int = 131_072
    timeout: float = 7200.0


class EndpointProposer:
    """Asks an endpoint. thinking: whether replies begin with a thought."""

    def __init__(self, config: EndpointConfig, seed: int = 0, thinking: bool = True):
        self.endpoint, self.seed, self.thinking = Endpoint(config), seed, thinking
        self.max_tokens = config.max_tokens

    def propose(self, asks: list[Ask], told: Callable[[Ask, Reply], None], seconds: float | None) -> None:
        def heard(place: int, said: Said | Silence | EndpointError) -> None:
            told(asks[place], self._reply(asks[place], said))

        try:
            self.endpoint.ask_each([(ask.messages, self._more(ask)) for ask in asks], heard, seconds)
        except EndpointError as error:
            raise ScalingRefused(str(error)) from None

    def _more(self, ask: Ask) -> dict:
        # 31 bits: what every server takes.
        more = {"max_tokens": ask.max_tokens, "seed": int(seed_of(self.seed, ask.key)[:8], 16) >> 1}
        template = self.endpoint.config.extra_body.get("chat_template_kwargs", {})
        return more if self.thinking else more | {"chat_template_kwargs": {**template, "enable_thinking": False}}

    def _reply(self, ask: Ask, said: Said | Silence | EndpointError) -> Reply:
        if isinstance(said, EndpointError):
            return Reply("", 0, fault=str(said))
        if isinstance(said, Silence):
            fault = f"{self.endpoint.config.base_url}: {KINDS[said.fault].replace('its judge', 'the model')}"
            return Reply("", 0, fault=fault)
        thought, answer = said.thought, said.text
        if not thought and (END_OF_THOUGHT in answer or (self.thinking and said.finish == "length")):
            thought, answer = split_reply(answer)
        # A server that does not count is charged as if it had said all that it might.
        tokens = said.length if said.length is not None else ask.max_tokens
        return Reply((answer or "").strip(), tokens, said.finish, thought)


class EngineProposer:
    """Asks a rollout engine of this process, which must be the only one."""

    def __init__(self, engine, tokenizer, generation, room: int, seed: int = 0, thinking: bool = True):
        """generation: a GenerationConfig. room: tokens of a prompt with its reply, at most."""
        self.engine, self.tokenizer, self.generation = engine, tokenizer, generation
        self.room, self.seed, self.thinking = room, seed, thinking
        self.max_tokens = generation.max_new_tokens

    def propose(self, asks: list[Ask], told: Callable[[Ask, Reply], None], seconds: float | None) -> None:
        deadline = None if seconds is None else time.monotonic() + seconds
        asked = {}
        for ask in asks:
            request, params = self._request(ask)
            asked[request.prompt_id] = ask
            self.engine.add([request], params)
        while self.engine.busy():
            if deadline is not None and time.monotonic() >= deadline:
                self.engine.abort({(prompt_id, 0) for prompt_id in asked})
                return
            heartbeat.beat()
            for rollout in self.engine.step():
                ask = asked.pop(rollout.prompt_id)
                told(ask, self._reply(rollout))

    def _request(self, ask: Ask):
        from nemo_cascade.data.chat import render_prompt
        from nemo_cascade.rollout.types import Request, SamplingParams

        prompt = render_prompt(self.tokenizer, ask.messages, enable_thinking=self.thinking)
        if len(prompt) + ask.max_tokens > self.room:
            raise ScalingRefused(
                f"{ask.key}: a prompt of {len(prompt)} tokens with a reply of {ask.max_tokens} is longer than "
                f"policy.max_total_sequence_length={self.room}; raise that, or lower policy.generation.max_new_tokens or what prompts show"
            )
        settings = dict(temperature=self.generation.temperature, top_p=self.generation.top_p, max_new_tokens=ask.max_tokens)
        return Request(seed_of(self.seed, ask.key), 0, tuple(prompt)), SamplingParams(**settings, seed=self.seed)

    def _reply(self, rollout) -> Reply:
        length = len(rollout.response)
        written = rollout.response if rollout.finish_reason == "length" else rollout.response[:-1]
        text = self.tokenizer.decode(written, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        thought, answer = split_reply(text, self.thinking)
        return Reply((answer or "").strip(), length, rollout.finish_reason, thought)


def engine_proposer(policy_config, checkpoint: str | None, seed: int, thinking: bool) -> EngineProposer:
    """The engine over the weights of a checkpoint, of a Hugging Face folder that policy.model_name names, or fresh ones.

    Raises ScalingRefused for a checkpoint that does not fit, and in a world of several processes.
    """
    import os
    from pathlib import Path

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.stages.config import PretrainedConfig
    from nemo_cascade.stages.rollouts import make_engine
    from nemo_cascade.stages.start import begin

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ScalingRefused("scale runs in one process; for a model on several GPUs serve it, and name it as endpoint.base_url")
    try:
        parallel.init(policy_config.megatron_cfg)
        policy = Policy(policy_config, seed=seed)
        step = Path(checkpoint) if checkpoint is not None and (Path(checkpoint) / "policy").is_dir() else None
        begin(policy, step, PretrainedConfig(checkpoint) if checkpoint is not None else None)
    except ValueError as error:
        raise ScalingRefused(str(error)) from None
    engine = make_engine(policy)
    engine.sync(policy)
    return EngineProposer(engine, policy.tokenizer, policy_config.generation, policy_config.max_total_sequence_length, seed, thinking)


def seed_of(seed: int, key: str) -> str:
    """64 hex digits of what makes one reply's noise."""
    return hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()
