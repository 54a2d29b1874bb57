"""Office requests: their calls do what they should and none is idle, other ways to the same state are as good.

And no file of the demo changes.
"""

import json
import random

import pytest

from nemo_cascade.data import demo
from nemo_cascade.data.chat import render_tool_call
from nemo_cascade.data.demo import DOMAINS, LEVELS, ON_REQUEST, workplace_assistant, write
from nemo_cascade.data.rows import load_rows, messages_of, rl_problem
from nemo_cascade.environments import names, response_of, row_problem
from nemo_cascade.environments.workplace_assistant import TOOLS, session, verify
from nemo_cascade.environments.workplace_assistant.data import GENERATED, databases

DOMAIN = ON_REQUEST["workplace_assistant"]
ROWS = DOMAIN.rows(400, "train")
DATA = databases(GENERATED)


def calls_of(row):
    return [{"name": call["name"], "arguments": json.loads(call["arguments"])} for call in row["ground_truth"]]


def reward(row, calls):
    text = "\n".join(map(render_tool_call, calls)) or "Nothing."
    return verify(row, response_of(f"</think>{text}"))["reward"]


@pytest.mark.parametrize("level", LEVELS)
def test_every_row_can_be_verified_and_its_demonstration_is_right(level):
    for row in DOMAIN.rows(300, "train", level=level):
        assert row_problem(row) is None and rl_problem(row, {"workplace_assistant"}) is None
        reply = DOMAIN.demonstration(row)["messages"][-1]
        assert verify(row, response_of(f"</think>{reply['content']}"))["reward"] == 1.0


def test_every_call_is_needed():
    for row in ROWS:
        calls = calls_of(row)
        for place in range(len(calls)):
            assert reward(row, calls[:place] + calls[place + 1 :]) == 0.0, row
        assert reward(row, [*calls, *calls_of(ROWS[0])]) == float(not calls_of(ROWS[0]))


def another_way(call):
    """Calls that do the same by other means."""
    name, given = call["name"], dict(call["arguments"])
    if name in ("email_reply_email", "email_forward_email"):
        email = next(row for row in DATA.emails if row["email_id"] == given["email_id"])
        reply = name == "email_reply_email"
        sent = {
            "recipient": email["sender/recipient"] if reply else given["recipient"].upper(),
            "subject": ("RE: " if reply else "FW: ") + email["subject"],
            "body": given["body"] if reply else email["body"],
        }
        return [{"name": "email_send_email", "arguments": sent}]
    louder = {
        key: value.upper()
        for key, value in given.items()
        if "email" in key or key in ("recipient", "subject", "body", "event_name")
    }
    return [{"name": name, "arguments": given | {key: value for key, value in louder.items() if not key.endswith("_id")}}]


def test_other_ways_to_the_same_state_are_as_good():
    rng, changed = random.Random(0), 0
    for row in ROWS:
        calls = [other for call in calls_of(row) for other in another_way(call)]
        changed += calls != calls_of(row)
        lookup = {"name": "email_search_emails", "arguments": {"query": "the"}}
        wrong = {"name": "email_delete_email", "arguments": {"email_id": "none"}}
        calls.insert(rng.randint(0, len(calls)), rng.choice((lookup, wrong)))
        assert reward(row, calls) == 1.0, row
        if not any("create" in call["name"] or "send" in call["name"] or "add" in call["name"] for call in calls):
            assert reward(row, calls[::-1]) == 1.0, row
    assert changed > 100


def test_another_rows_calls_are_wrong():
    right = sum(reward(row, calls_of(other)) for row, other in zip(ROWS, ROWS[1:]))
    assert right <= 5


def test_requests_are_of_every_kind_some_need_several_calls_and_a_few_none():
    kinds = {row["category"].removeprefix("workplace_assistant_") for row in ROWS}
    assert kinds == {kind.__name__ for kind in workplace_assistant.GIVEN + workplace_assistant.LOOKED_UP}
    counts = [len(row["ground_truth"]) for row in ROWS]
    assert max(counts) == workplace_assistant.MOST and sum(n > 1 for n in counts) > len(ROWS) / 4
    assert 0 < counts.count(0) < len(ROWS) / 10
    assert {len(row["ground_truth"]) for row in DOMAIN.rows(100, "train", level="demo")} == {1}


def test_what_a_request_leaves_out_can_be_looked_up():
    """The IDs and addresses of the expected calls are in what a search for the request's own words finds."""
    for row in ROWS[:100]:
        request, working = messages_of(row)[-1]["content"], session(row)
        words = {word.strip(".,:;?\"()'") for word in request.replace("'s", " ").split()}
        asked = {name for name in (word.lower() for word in words) if name.isalpha()}
        known = request
        for name in asked:
            known += working.call("company_directory_find_email_address", {"name": name})
            known += working.call("email_search_emails", {"query": name, "page_size": 500})
            known += working.call("calendar_search_events", {"query": name, "page_size": 500})
            known += working.call("customer_relationship_manager_search_customers", {"customer_name": name, "page_size": 500})
        known += working.call("calendar_search_events", {"page_size": 500})
        known += "".join(
            working.call("project_management_search_tasks", {"board": board}) for board in ("Back", "Front", "Design")
        )
        known += "".join(
            working.call("customer_relationship_manager_search_customers", {"status": status, "page_size": 500})
            for status in ("Won", "Lost", "L", "Q", "P")
        )
        for call in calls_of(row):
            assert call["name"] in TOOLS
            for key, value in call["arguments"].items():
                if key.endswith("_id") or "@" in value:
                    assert value in known, (request, key, value)


def test_rows_are_the_same_every_time_and_splits_share_no_prompt():
    assert DOMAIN.rows(20, "train", seed=3) == DOMAIN.rows(20, "train", seed=3) != DOMAIN.rows(20, "train", seed=4)
    prompts = [{messages_of(row)[-1]["content"] for row in DOMAIN.rows(200, split)} for split in ("train", "validation")]
    assert not prompts[0] & prompts[1] and all(len(found) == 200 for found in prompts)


def test_it_is_written_on_request_and_only_then(tmp_path):
    numbers = {"train_rows": 3, "validation_rows": 2, "sft_rows": 4}
    write(tmp_path / "demo", **numbers)
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == sorted([*DOMAINS, *demo.FIXED])
    write(tmp_path / "asked", **numbers, only="workplace_assistant")
    (folder,) = (tmp_path / "asked").iterdir()
    rows, _ = load_rows(
        folder / "train.jsonl", "rl", environments=names(), unverifiable=lambda rows: [row_problem(row) for row in rows]
    )
    assert len(rows) == 3 and len(load_rows(folder / "sft.jsonl", "sft")[0]) == 4
    assert "workplace_assistant" not in demo.DOMAINS
