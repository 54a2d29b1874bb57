"""The demo's repositories (`data.repositories`), to be mended by an agent with a shell and an editor. Not drawn: so many there are."""

from nemo_cascade.data import repositories

# Every fourth is for validation: so few prompts have no even spread of hashes.
HELD_OUT_EVERY = 4


def rows(split: str) -> list[dict]:
    """All rows of split "train" or "validation"."""
    chosen = [number % HELD_OUT_EVERY == 0 for number in range(len(repositories.names()))]
    return [row for row, held_out in zip(repositories.rows(), chosen) if held_out == (split == "validation")]
