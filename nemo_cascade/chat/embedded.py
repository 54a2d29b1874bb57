"""Weights in this process, token by token: a stage's checkpoint or a Hugging Face folder, by the embedded engine."""

import contextlib
import hashlib
import secrets
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.chat.prompt import prompt_ids
from nemo_cascade.chat.reading import END_OF_THOUGHT, Reader
from nemo_cascade.chat.turns import ChatError, Ended, Event, Settings, Turn
from nemo_cascade.data.tokenizer import STOP_IDS
from nemo_cascade.rollout.types import Request, SamplingParams

# One process holds it all, however the stage was laid out.
ALONE = [
    "policy.generation.backend=megatron",
    *(f"policy.megatron_cfg.{part}_model_parallel_size=1" for part in ("tensor", "pipeline", "expert")),
    "policy.megatron_cfg.context_parallel_size=1",
    "policy.megatron_cfg.sequence_parallel=false",
    "policy.megatron_cfg.expert_tensor_parallel_size=null",
]


class Embedded:
    """A `Model`. Threads that ask at once are answered one after the other."""

    def __init__(self, policy, engine, name: str):
        self.policy, self.engine, self.name = policy, engine, name
        self.tokenizer, self.longest = policy.tokenizer, policy.config.max_total_sequence_length
        self._asked = threading.Lock()
        # Fresh weights are in no engine yet; one that has the policy's own has nothing to do.
        engine.sync(policy)

    def turn(self, messages: list[dict], tools: list[dict] | None, settings: Settings) -> Turn:
        written: list[int] = []
        return Turn(self._events(messages, tools, settings, written), written)

    def close(self) -> None:
        from nemo_cascade.engine import parallel

        parallel.shutdown()

    def prompt(self, messages: list[dict], tools: list[dict] | None, thinking: bool) -> list[int]:
        """Raises ChatError where the conversation leaves no room for a word, or the template cannot say it."""
        try:
            prompt = prompt_ids(self.tokenizer, messages, tools, thinking)
        except Exception as error:  # noqa: BLE001 - templates raise what they like
            raise ChatError(f"the chat template cannot say this conversation: {error}") from error
        if not all(0 <= token < self.policy.preset.vocab_size for token in prompt):
            raise ChatError("the conversation has tokens that are not this model's; begin a new one")
        if len(prompt) >= self.longest:
            raise ChatError(f"the conversation has {len(prompt)} tokens, of {self.longest} that the model can read; begin a new one")
        return prompt

    def _events(self, messages, tools, settings: Settings, written: list[int]) -> Iterator[Event]:
        prompt = self.prompt(messages, tools, settings.thinking)
        reader = Reader(self.tokenizer, tools, settings.thinking)
        room = self.longest - len(prompt)
        with self._asked:
            for token in self._tokens(prompt, settings, min(settings.max_tokens or room, room), written):
                written.append(token)
                yield from reader.read(token)
        yield from reader.end()
        stopped = bool(written) and written[-1] in STOP_IDS
        reason = "length" if not stopped else "tool_calls" if reader.called else "stop"
        yield Ended(reason, len(prompt), len(written))

    def _tokens(self, prompt: list[int], settings: Settings, most: int, written: list[int]) -> Iterator[int]:
        """At most `most` ids. A thought that comes to its budget is ended, and the answer follows in the same turn."""
        seed = secrets.randbits(40) if settings.seed is None else settings.seed
        if not settings.thinking or settings.budget is None or settings.budget >= most:
            yield from self._sampled(prompt, settings, most, seed, STOP_IDS)
            return
        if settings.budget:
            yield from self._sampled(prompt, settings, settings.budget, seed, (*STOP_IDS, END_OF_THOUGHT))
        if written and written[-1] in STOP_IDS:
            return
        if not written or written[-1] != END_OF_THOUGHT:
            yield END_OF_THOUGHT
        if len(written) < most:
            yield from self._sampled([*prompt, *written], settings, most - len(written), seed, STOP_IDS)

    def _sampled(self, prompt: list[int], settings: Settings, most: int, seed: int, stop_ids: tuple[int, ...]) -> Iterator[int]:
        params = SamplingParams(settings.temperature, settings.top_p, max_new_tokens=most, stop_ids=stop_ids, seed=seed)
        # Noise is drawn by prompt: under one seed, other words are said to another one.
        request = hashlib.sha256(repr(prompt).encode()).hexdigest()[:16], 0
        self.engine.add([Request(*request, tuple(prompt))], params)
        seen, ended = 0, []
        try:
            while not ended:
                with uninterrupted():
                    ended = self.engine.step()
                tokens = ended[0].response if ended else self.engine.so_far(*request)
                yield from tokens[seen:]
                seen = len(tokens)
        except MemoryError as error:
            raise ChatError(f"{error}; or ask for fewer tokens") from error
        finally:
            self.engine.abort({request})


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until a forward pass is over, so that nothing of the engine is left half done; the second one does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = []

    def press(number, frame) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def is_checkpoint(path: Path) -> bool:
    """Whether it is a step_N of a stage, and no Hugging Face folder; raises RunRefused where it is neither."""
    if (path / "policy").is_dir():
        return True
    if (path / "config.json").is_file():
        return False
    steps = sorted((step for step in path.glob("step_*") if (step / "policy").is_dir()), key=lambda step: step.stat().st_mtime)
    hint = f"; did you mean {steps[-1]}?" if steps else "; name a step_N of a stage, or a Hugging Face folder"
    raise RunRefused(f"{path}: no policy/ there and no config.json{hint}")


def opened(path: Path, overrides: list[str], name: str | None = None) -> Embedded:
    """The weights at `path`. overrides: policy.KEY=VALUE. Raises RunRefused saying what is wrong with them."""
    checkpoint = is_checkpoint(path)
    from nemo_cascade.evaluation.checkpoint import of_folder, of_stage

    loaded = (of_stage if checkpoint else of_folder)(path, [*ALONE, *overrides])
    return Embedded(loaded.policy, loaded.engine, name or name_of(path))


def name_of(path: Path) -> str:
    """What a model is called without being told: a folder's name, a checkpoint's with its stage's."""
    path = path.absolute()
    return f"{path.parent.name}-{path.name}" if path.name.startswith("step_") else path.name
