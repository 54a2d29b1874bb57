"""vLLM in the processes that train: one engine a rank, without workers of its own, on weights that are pushed after every step.

Every rank's engine holds the whole model and replies to its own share of the requests, so that no rank waits for another inside a
step. Token ids go in and come out; log-probs are those of the distribution that was sampled from. A reply's seed depends on
(seed, prompt, sample), but how sums are rounded on its batch, so a token may come out otherwise in another batch; rollouts are on
disk before they are trained on, and a resumed run reads them there.

vLLM cannot be torn down in a process, so an engine is built once and serves all stages. On a GPU it sleeps, its weights given up,
from the end of one batch of requests until the next weights are pushed; that has not been run on one yet. Left out: engines over
several ranks (tensor or expert parallel), prefix caching.
"""

import contextlib
import dataclasses
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from nemo_cascade.engine import parallel
from nemo_cascade.models.config import ModelConfig
from nemo_cascade.models.hf_config import hf_config
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.engine import EngineError, at_work
from nemo_cascade.rollout.noise import row_keys
from nemo_cascade.rollout.types import Request, Rollout, SamplingParams
from nemo_cascade.rollout.vllm_push import Sent, recorded, refuse_changed

logger = logging.getLogger(__name__)

# Keys and values, and Mamba's states, of all running requests on a CPU; vLLM lets requests wait that find no room.
CPU_CACHE_BYTES = 2**29
# Prompt tokens that a CPU reads at once, if no single sequence may be longer.
PREFILL_TOKENS = 4096
# NeMo RL's bound for token_mult_prob_error, the mean of exp |log-prob in one engine - in the other|.
MISMATCH = 1.05

STREAMS = ("Stream", "Event", "stream", "current_stream", "set_stream")

_engines: dict[str, object] = {}


class VllmEngine:
    """Replies with the weights of the last `sync`. All ranks make the same calls of `sync`; the others are a rank's own."""

    alone = True

    def __init__(self, preset: ModelConfig, config: GenerationConfig, precision: str):
        self.preset = preset
        self.llm = engine_for(preset, config, precision)
        # Stored where they lie for good: a push writes into them.
        self.parameters = self.llm.apply_model(lambda model: dict(model.named_parameters()))[0]
        self.max_tokens = self.llm.model_config.max_model_len
        self.sleeps = torch.cuda.is_available()
        self.running: dict[str, Request] = {}

    def sharing(self):
        """The ranks that share requests: all, since each has a whole model."""
        return dist.group.WORLD

    def add(self, requests: list[Request], params: SamplingParams) -> None:
        """Queues requests; raises ValueError for one that is empty, or longer with its reply than the engine's longest."""
        for request in requests:
            longest = len(request.prompt) + params.max_new_tokens
            if not request.prompt:
                raise ValueError(f"request {request.prompt_id}/{request.sample} has an empty prompt")
            if params.report_experts:
                raise ValueError("vLLM reports no experts to us; set policy.router_replay.enabled=false or backend=megatron")
            if longest > self.max_tokens:
                raise ValueError(
                    f"request {request.prompt_id}/{request.sample}: a prompt of {len(request.prompt)} tokens and a reply of up to "
                    f"{params.max_new_tokens} are more than {self.max_tokens}; raise policy.generation.vllm_cfg.max_model_len"
                )
        if requests and self.sleeps and self.llm.is_sleeping():
            raise EngineError("vLLM sleeps without weights; call sync before add")
        keys = row_keys(params.seed, [r.prompt_id for r in requests], [r.sample for r in requests]).tolist() if requests else []
        with told(self.running):
            for request, key in zip(requests, keys):
                name = f"{request.prompt_id}/{request.sample}"
                self.running[name] = request
                self.llm.add_request(name, {"prompt_token_ids": list(request.prompt)}, sampling(params, key))

    def busy(self) -> bool:
        """Whether any request of this rank is unfinished."""
        return bool(self.running)

    def step(self) -> list[Rollout]:
        """One forward pass; raises EngineError, with vLLM's own behind it, when it fails."""
        with told(self.running):
            outputs = [output for output in self.llm.step() if output.finished]
        return [self._rollout(output) for output in outputs if output.request_id in self.running]

    def abort(self, ids: set[tuple[str, int]]) -> None:
        """Forgets requests by (prompt_id, sample), waiting or running."""
        names = [name for name, request in self.running.items() if (request.prompt_id, request.sample) in ids]
        self.llm.abort_request(names)
        for name in names:
            del self.running[name]

    def sync(self, policy) -> None:
        """Pushes the policy's weights, compares what arrived with what was sent, and a probe's log-probs in both engines.

        Raises EngineError, on every rank, naming the tensors that are not what was sent; a probe that is apart is only warned of.
        """
        error = None
        sent: dict[str, Sent] = {}
        gathered = policy.hf_weights()
        weights = recorded(gathered, self.parameters, sent)
        try:
            with told():
                if self.sleeps and self.llm.is_sleeping():
                    self.llm.wake_up(tags=["weights"])
                self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
                refuse_changed(self.parameters, sent)
                if self.sleeps and self.llm.is_sleeping():
                    self.llm.wake_up(tags=["kv_cache"])
        except EngineError as raised:
            error = raised
            for _ in gathered:  # the other ranks still gather
                pass
        parallel.raise_anywhere(error)
        self._warn_of_mismatch(policy)

    def rest(self) -> None:
        """On a GPU, sleeps without weights, which the next `sync` pushes anew."""
        if self.sleeps:
            with told():
                self.llm.sleep(level=2)

    def score(self, rows: list[list[int]]) -> list[list[float]]:
        """The log-prob of every token under the plain softmax, entry 0 of each row being 0."""
        from vllm import SamplingParams as Sampling

        asked = Sampling(max_tokens=1, prompt_logprobs=0, detokenize=False)
        scores: dict[str, list[float]] = {}
        with told():
            for number, row in enumerate(rows):
                self.llm.add_request(f"score/{number}", {"prompt_token_ids": list(row)}, asked)
            while len(scores) < len(rows):
                for output in self.llm.step():
                    if output.finished:
                        entries = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:])
                        scores[output.request_id] = [0.0, *(entry[token].logprob for token, entry in entries)]
        return [scores[f"score/{number}"] for number in range(len(rows))]

    def _rollout(self, output) -> Rollout:
        request, reply = self.running.pop(output.request_id), output.outputs[0]
        return Rollout(
            prompt_id=request.prompt_id,
            sample=request.sample,
            prompt=list(request.prompt),
            response=list(reply.token_ids),
            logprobs=[entry[token].logprob for token, entry in zip(reply.token_ids, reply.logprobs)],
            finish_reason=reply.finish_reason,
        )

    def _warn_of_mismatch(self, policy) -> None:
        """By the probe that checkpoints keep, scored by trainer and engine."""
        from nemo_cascade.engine import probe

        known = probe.take(policy)
        error = token_mult_prob_error(known.logprobs, self.score(known.tokens))
        if not error <= MISMATCH:
            logger.warning(
                "vLLM gives a probe's tokens other log-probs than the trainer: token_mult_prob_error %.4f, up to %.2f is usual; "
                "its weights are those that were pushed, so its precision or one of its kernels is not the trainer's",
                error,
                MISMATCH,
            )


def token_mult_prob_error(one: list[list[float]], other: list[list[float]]) -> float:
    """NeMo RL's measure: the mean over tokens of exp |difference of log-probs|, without each row's first token."""
    pairs = [(a, b) for row, second in zip(one, other, strict=True) for a, b in zip(row[1:], second[1:], strict=True)]
    mine, theirs = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    return float((mine - theirs).abs().exp().mean())


def sampling(params: SamplingParams, key: int):
    """Our settings as vLLM's; key: a signed 64-bit number that is a reply's own."""
    from vllm import SamplingParams as Sampling
    from vllm.sampling_params import RequestOutputKind

    return Sampling(
        temperature=params.temperature,
        top_p=params.top_p,
        max_tokens=params.max_new_tokens,
        stop_token_ids=list(params.stop_ids),
        ignore_eos=True,  # the stop ids say where a reply ends, no file of the model
        seed=key & (2**63 - 1),
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def engine_for(preset: ModelConfig, config: GenerationConfig, precision: str):
    """This process's vLLM for a network and these settings, built where there is none yet; all ranks call this together.

    One with other settings takes the place of the one before. Its weights mean nothing until they are pushed.
    """
    args = engine_args(preset, config, precision)
    key = json.dumps([dataclasses.asdict(preset), args], sort_keys=True, default=str)
    if key not in _engines:
        _engines.clear()
        _engines[key] = build(preset, args, precision)
    return _engines[key]


def engine_args(preset: ModelConfig, config: GenerationConfig, precision: str) -> dict:
    """vLLM's EngineArgs; `policy.generation.vllm_kwargs` has the last word."""
    gpu = torch.cuda.is_available()
    args = dict(
        dtype=precision,
        load_format="dummy",
        skip_tokenizer_init=True,
        generation_config="vllm",
        distributed_executor_backend="external_launcher",
        max_model_len=config.vllm_cfg.max_model_len or preset.max_sequence_length,
        max_num_seqs=config.max_batch_size,
        logprobs_mode="processed_logprobs",
        mamba_ssm_cache_dtype="float32",
        enable_prefix_caching=False,
        enforce_eager=config.vllm_cfg.enforce_eager or not gpu,
        disable_log_stats=True,
        seed=0,
    )
    if gpu:
        args |= dict(enable_sleep_mode=True, gpu_memory_utilization=config.vllm_cfg.gpu_memory_utilization)
    else:
        # Prompts are read whole: after a part of one vLLM winds back the generator of its reply, which a CPU's cannot.
        args |= dict(enable_chunked_prefill=False, max_num_batched_tokens=max(args["max_model_len"], PREFILL_TOKENS))
        args |= dict(kv_cache_memory_bytes=CPU_CACHE_BYTES)
    return args | config.vllm_kwargs


def build(preset: ModelConfig, args: dict, precision: str):
    """A vLLM engine in this process, on top of the process groups that are there."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    with undisturbed(), tempfile.TemporaryDirectory() as folder, told():
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        from nemo_cascade.rollout import vllm_cpu

        if not torch.cuda.is_available():
            vllm_cpu.register()  # also where this package is not installed and so no plugin of vLLM's
            vllm_cpu.keep_weights_readable()
            vllm_cpu.leave_memory_unbound()
        (Path(folder) / "config.json").write_text(json.dumps(hf_config(preset, precision)))
        return LLMEngine.from_engine_args(EngineArgs(model=folder, **args))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Puts back what vLLM changes of the process: random states, torch's choice of threads and default type, and, on a CPU, the streams
    that `engine.cpu` gives megatron-core, which vLLM replaces by less. Its remarks on what a CPU lacks, once a rank, are left out."""
    if not torch.cuda.is_available() and "VLLM_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("vllm").setLevel(logging.ERROR)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads, dtype = torch.set_num_threads, torch.get_default_dtype()
        streams = {name: getattr(torch.cuda, name) for name in STREAMS}
        try:
            yield
        finally:
            torch.set_num_threads = threads
            for name, value in streams.items():
                setattr(torch.cuda, name, value)
            torch.set_default_dtype(dtype)


@contextlib.contextmanager
def told(running: Collection[str] = ()) -> Iterator[None]:
    """What vLLM raises, as an EngineError that names this rank and what it was running, in the order in which it was added."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        place = f"vLLM on rank {parallel.rank()} failed{at_work(running)}"
        raise EngineError(f"{place}: {type(error).__name__}: {error}") from error
