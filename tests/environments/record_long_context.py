"""Records what NeMo Gym's servers `mrcr` and `ruler` give made-up replies to our rows: the suite's oracle where Gym is not.

    python tests/environments/record_long_context.py --wheel nemo_gym-0.4.0-py3-none-any.whl

Run it again, and look at what changed, when the generated rows or the made-up replies change.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

from nemo_cascade.data.long_context import TASKS, Measure, generate
from nemo_cascade.data.rows import messages_of
from nemo_cascade.data.tokenizer import load_tokenizer

HERE = Path(__file__).parent
RECORD = HERE / "long_context_record.json"
# Gym has no server for boxed answers to questions over documents.
RECORDED = [task for task in TASKS if task != "qa_many"]
ROWS, LENGTH, SEED = 3, 3200, 11


def made_up() -> list[tuple[dict, str]]:
    """(row, reply) pairs."""
    measure, pairs = Measure(load_tokenizer("tiny")), []
    for task in RECORDED:
        for number in range(ROWS):
            row = generate(task, measure, LENGTH, SEED, number)
            pairs += [(row, reply) for reply in replies_to(row, random.Random(f"{task}/{number}"))]
    return pairs


def replies_to(row: dict, rng: random.Random) -> list[str]:
    """Right, nearly right and wrong ones."""
    texts = [message["content"] for message in messages_of(row)]
    if "random_string_to_prepend" in row:
        prefix, right = row["random_string_to_prepend"], row["expected_answer"]
        body = right.removeprefix(prefix)
        words, others = body.split(), texts[1::2]
        bodies = [body, body.upper(), body[: len(body) // 2], body[len(body) // 2 :], "", " " + body, body + "\n", body[::-1]]
        bodies += [" ".join(rng.sample(words, len(words))), body + body, body.replace("e", ""), "x" + body, body.replace(" ", "")]
        bodies += [" ".join(word for word in words if rng.random() < keep) for keep in (0.9, 0.7, 0.4)]
        bodies += [_noisy(body, rng, share) for share in (0.01, 0.05, 0.2, 0.6)]
        bodies += rng.sample(others, 2) + ["".join(rng.choices("abc .", k=300))]
        outside = [body, prefix[:-1] + body, prefix.lower() + body, f"Here it is: {right}", "", f"  {right}  ", prefix + right]
        return [prefix + text for text in bodies] + outside
    outputs = row["outputs"]
    listed = ", ".join(outputs)
    kept = [", ".join(text for text in outputs if rng.random() < share) for share in (0.8, 0.5, 0.2)]
    wrong = ", ".join(row.get("wrong_outputs", [])[:3])
    made = [listed, listed.upper(), listed.lower(), "\n".join(reversed(outputs)), "", listed[:-1], listed.replace(",", ""), *kept]
    made += [wrong, f"{listed}, {wrong}", f"I think it is {outputs[0]}.", texts[-1], texts[-1][:200]]
    return [*made, listed.replace("", " ")]


def _noisy(text: str, rng: random.Random, share: float) -> str:
    return "".join(rng.choice("etaoin shrdlu") if rng.random() < share else character for character in text)


def gym(wheel: str, pairs: list) -> list[float]:
    """What Gym gives."""
    command = [sys.executable, str(HERE / "long_context_oracle.py"), wheel]
    ran = subprocess.run(command, input=json.dumps(pairs), capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"Gym's side failed: {ran.stderr[-2000:]}")
    return json.loads(ran.stdout)


def hashed(pairs: list) -> str:
    return hashlib.sha256(json.dumps(pairs, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", required=True)
    pairs = made_up()
    record = {"pairs": hashed(pairs), "rewards": gym(parser.parse_args().wheel, pairs)}
    RECORD.write_text(json.dumps(record) + "\n", encoding="utf-8")
