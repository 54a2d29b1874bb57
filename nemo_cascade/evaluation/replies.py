"""Who is asked: one protocol for endpoints and for weights in this process."""

from collections.abc import Callable
from typing import Protocol

from nemo_cascade.evaluation.benchmark import Sample, Settings

# {"response": an OpenAI response, what verifiers read, "finish": stop, length (cut) or turns (none left), "tokens": the model's own}.
Reply = dict
Heard = Callable[[Sample, Reply], None]


class Source(Protocol):
    """name: what is shown. identity: the hash of all of it that replies depend on. rank: of this process; all make the same calls."""

    name: str
    identity: str
    rank: int

    def answer(self, samples: list[Sample], settings: Settings, heard: Heard) -> dict[str, Reply]:
        """key -> reply, on every rank; `heard` gets each as soon as it is there, in the process that had it. Those that nobody gave
        are missing."""

    def share(self, function: Callable[[list], list], items: list) -> list:
        """function(items), a list with an entry an item; ranks share the work, and all have all of it."""

    def close(self) -> None:
        """Nothing more will be asked."""
