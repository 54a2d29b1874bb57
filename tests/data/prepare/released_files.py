"""Folders as the released sets are, in their schemas and with their defects, small."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nemo_cascade.data.prepare.catalogue import find

WORDS = "river stone lamp cloud letter garden winter silver morning window paper bridge".split()


def sentence(number: int, length: int = 20) -> str:
    """Words that differ from number to number in nearly all 8-grams."""
    return " ".join(f"{WORDS[(number * 7 + place * place) % len(WORDS)]}{(number * 31 + place) % 97}" for place in range(length))


def chat(number: int, turns: int = 1, thinking: bool = True) -> dict:
    messages = [{"role": "system", "content": ""}]
    for turn in range(turns):
        thought = f"<think>\nthought {number} {turn}\n</think>\n" if thinking else ""
        messages += [
            {"role": "user", "content": f"{sentence(number + 1000 * turn)}?"},
            {"role": "assistant", "content": f"{thought}answer {number} {turn}"},
        ]
    return {"messages": messages, "generator": "-"}


CALL = "<tool_call>\n<function=look>\n<parameter=word>\nriver\n</parameter>\n</function>\n</tool_call>"


def with_tools(number: int) -> dict:
    """A thought, a call, its result as the user's, a second thought and an answer."""
    return {
        "messages": [
            {"role": "system", "content": "You have the tool look."},
            {"role": "user", "content": sentence(number)},
            {"role": "assistant", "content": f"<think>\nfirst thought\n</think>\n{CALL}"},
            {"role": "user", "content": "<tool_response>\nit is wide\n</tool_response>"},
            {"role": "assistant", "content": "<think>\nsecond thought\n</think>\nWide."},
        ]
    }


def gym_row(number: int, **keys) -> dict:
    message = {"role": "user", "content": sentence(number)}
    return {"responses_create_params": {"input": [message], "tools": []}, "id": number, **keys}


def follow(number: int, **keys) -> dict:
    given = {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["river"]}]}
    agent = {"type": "responses_api_agents", "name": "instruction_following_simple_agent"}
    return gym_row(number, **given, agent_ref=agent) | keys


def choose(number: int, **keys) -> dict:
    return gym_row(number, options=[{"A": "Oslo"}, {"B": "Bergen"}], expected_answer="B", **keys)


def write_lines(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def sft_folder(root: Path, rows: int = 24) -> Path:
    """Two subsets, one of them in two files; a defect in every seventh row of the first."""
    chats = [chat(n, turns=1 + n % 3, thinking=n % 2 == 0) for n in range(rows)]
    chats[6], chats[13] = {"messages": chats[6]["messages"][:2]}, "{half"
    write_lines(root / "chat" / "part_0.jsonl", chats[: rows // 2])
    write_lines(root / "chat" / "part_1.jsonl", ["", *chats[rows // 2 :]])
    write_lines(root / "conversational_agent" / "train.jsonl", [with_tools(5000 + n) for n in range(rows // 4)])
    return root


def rl_folder(root: Path, rows: int = 40) -> Path:
    """The subsets IF-RL and SWE-RL; two rows of the first cannot be verified."""
    lines = [follow(n) for n in range(rows)]
    lines[3], lines[30] = follow(3, kwargs=[]), gym_row(30)
    lines[5] = follow(5, kwargs=[{"keywords": "river", "num_words": None}])
    del lines[7]["agent_ref"]
    write_lines(root / "IF-RL" / "train.jsonl", lines)
    agent = {"type": "responses_api_agents", "name": "openhands_simple_agent"}
    write_lines(root / "SWE-RL" / "train.jsonl", [gym_row(9000 + n, agent_ref=agent) for n in range(6)])
    return root


def write_table(path: Path, rows: list[dict]) -> Path:
    """Parquet of two row groups, in which each object has the keys of all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=max(1, len(rows) // 2))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def dropped(out: Path) -> list[tuple]:
    return [
        (line["subset"], line["file"], line["row"], line["reason"])
        for line in map(json.loads, (out / "dropped.jsonl").read_text().splitlines())
    ]


SFT, RL = find("cascade-2-sft"), find("cascade-2-rl")
