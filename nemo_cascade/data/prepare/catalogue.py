"""The released data sets: where they are, at which revision, what is in them and which stage they feed.

Row counts are those of the sets' cards and, where a card is wrong, of the files themselves. Not here: what the paper trained
on and did not release (preferences, long contexts, prompts of Code RL).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Subset:
    """A folder of a set. rows: None where nobody said. stage: that of conf/full.yaml which it feeds.

    needs: environments whose rows cannot be verified without data that the set does not hold.
    """

    name: str
    rows: int | None
    stage: str
    what: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReleasedSet:
    """kind: "sft" (rows of `messages`) or "rl" (rows of NeMo Gym). revision: a commit; None where none has been read."""

    name: str
    kind: str
    repository: str
    revision: str | None
    subsets: tuple[Subset, ...]

    def subset(self, name: str) -> Subset:
        """Raises KeyError naming those that there are."""
        for subset in self.subsets:
            if subset.name == name:
                return subset
        raise KeyError(f"{self.name} has no subset {name!r}; it has {', '.join(subset.name for subset in self.subsets)}")


# Rows that hold calls to the workplace assistant's tools are for databases that the set does not contain.
WORKPLACE = "workplace_assistant"

SETS = (
    ReleasedSet(
        "cascade-2-sft",
        "sft",
        "nvidia/Nemotron-Cascade-2-SFT-Data",
        "9f36020daf067f1a8b39336bf619fe30af30bb02",
        (
            Subset("math", 5_226_364, "sft", "answers with and without Python, proofs; long thoughts"),
            Subset("science", 2_717_163, "sft", "thinking"),
            Subset("chat", 13_972_873, "sft", "one turn and many, with thinking and without"),
            Subset("instruction_following", 820_263, "sft", "63 % thinking, 31 % of several turns"),
            Subset("safety", 3_570, "sft", "thinking"),
            Subset("conversational_agent", 822_213, "sft", "tools described in the system message, results under role user"),
            Subset("swe", 439_610, "sft", "agentic without thinking, agentless with"),
            Subset("terminal_agent", 485_667, "sft", "the card says 822,213, the line above repeated"),
        ),
    ),
    ReleasedSet(
        "cascade-2-rl",
        "rl",
        "nvidia/Nemotron-Cascade-2-RL-data",
        "05bbaf03bac608e804efc86c5f8bf99844f2d197",
        (
            Subset("IF-RL", 45_879, "if_rl", "instructions that rules check; keyword arguments in need of repair"),
            Subset("multi-domain-RL", 18_147, "multi_domain_rl", "choices, tools, documents; some 555 unusable", (WORKPLACE,)),
            Subset("MOPD", 6_171, "mopd", "math and all of the above; some 60 unusable", (WORKPLACE,)),
            Subset("SWE-RL", 3_612, "swe_agentic_rl", "repositories in containers, for a server of NeMo Gym (--gym-server)"),
        ),
    ),
    ReleasedSet(
        "cascade-1-swe",
        "rl",
        "nvidia/Nemotron-Cascade-RL-SWE",
        None,
        (Subset("SWE", None, "swe_rl", "about 110,000 agentless repairs; name the --revision that you read"),),
    ),
)


def find(name: str) -> ReleasedSet:
    """The set of that name or repository. Raises KeyError naming those that there are."""
    for released in SETS:
        if name in (released.name, released.repository):
            return released
    raise KeyError(f"no data set {name!r}; there are {', '.join(released.name for released in SETS)}")
