"""Common words, each one token of the demo tokenizer (with its leading space)."""

WORDS = (
    "river stone lamp fish tree bird cloud bread chair glass horse light mouse night ocean paper queen radio "
    "sheep table train water wheel field green house knife lemon music piano"
).split()
COLORS = "red blue pink gray".split()
HOURS = "one two three four five six seven eight nine ten eleven noon".split()
# Share of the demonstrations that take the surer way (a thought, one word again and again).
WORKED = 0.5


def user(text: str) -> dict:
    """A row's prompt: one user message."""
    return {"input": [{"role": "user", "content": text}]}
