"""A model of known skill behind a real HTTP server: it knows the right reply to every prompt, gives it so often, and then wrong ones."""

import json
import random
import threading
import time
from collections import Counter

from nemo_cascade import environments
from nemo_cascade.data import repositories
from nemo_cascade.data.demo import DOMAINS, ON_REQUEST
from nemo_cascade.data.rows import environment_of

GOOD, BAD = "I am sure.", "I do not know."


def right_reply(row: dict) -> str:
    """What earns the most, as the model writes it."""
    name = row.get("domain")
    if name in DOMAINS | ON_REQUEST:
        return (DOMAINS | ON_REQUEST)[name].demonstrate(row, random.Random(0))[1]
    if environment_of(row) == "swe_agentic":
        patch = repositories._text(row["instance_id"].removeprefix("nemo_cascade__"), "golden.diff")
        return f"patch -p1 <<'END_OF_PATCH'\n{patch}\nEND_OF_PATCH"
    return environments.reference(row)


class Scripted:
    """right: how many replies to each of the rows are right, of all that are asked for. until: so many answers, then it falls silent.

    answered: of each prompt, how often it was; judged: what the model called "judge" was asked.
    """

    def __init__(self, rows: list[dict], right: list[int], until: int = 10**9, refuses: str = "\0"):
        self.rows = {self.prompt(row["responses_create_params"]["input"]): (row, count) for row, count in zip(rows, right)}
        self.until, self.refuses = until, refuses
        self.answered, self.bodies, self.judged, self.lock = Counter(), [], 0, threading.Lock()

    @staticmethod
    def prompt(messages: list[dict]) -> str:
        return next(message["content"] for message in messages if message["role"] == "user")

    def list(self, handler):
        self.send(handler, {"data": [{"id": "scripted"}, {"id": "judge"}]})

    def respond(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        if body["model"] == "judge":
            with self.lock:
                self.judged += 1
            return self.send(handler, {"choices": [{"message": {"content": self.judgement(body["messages"][-1]["content"])}}]})
        prompt = self.prompt(body["messages"])
        if self.refuses in prompt:
            return self.send(handler, {"error": "too long"}, status=400)
        with self.lock:
            self.bodies.append(body)
            if sum(self.answered.values()) < self.until:
                silent = False
                # Later turns of a conversation say that all is done.
                goes_on = body["messages"][-1]["role"] == "tool"
                number = self.answered[prompt] - 1 if goes_on else self.answered[prompt]
                self.answered[prompt] += not goes_on
            else:
                silent = True
        while silent:
            time.sleep(0.1)
        row, count = self.rows[prompt]
        message = {"content": "It is done."} if goes_on else self.message(row, number < count, body)
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        self.send(handler, {"choices": [{"message": message, "finish_reason": finish}], "usage": {"completion_tokens": 7}})

    def message(self, row: dict, right: bool, body: dict) -> dict:
        thinks = body.get("chat_template_kwargs", {}).get("enable_thinking", True)
        reply = right_reply(row) if right else BAD
        if environment_of(row) == "genrm_compare":
            reply = GOOD if right else BAD
        if environment_of(row) == "swe_agentic" and right:
            assert not thinks
            arguments = json.dumps({"command": reply})
            return {"content": None, "tool_calls": [{"id": "a", "function": {"name": "execute_bash", "arguments": arguments}}]}
        return {"content": f"Let me see.\n</think>\n{reply}"} if thinks else {"content": reply}

    def judgement(self, asked: str) -> str:
        first = asked.split("<|answer A|>")[1].split("<|end of answer A|>")[0].strip()
        second = asked.split("<|answer B|>")[1].split("<|end of answer B|>")[0].strip()
        if BAD in (first, second):
            return "So it is [[B>A]]." if first == BAD else "[[A>B]]"
        return "[[A>>B]]" if first == GOOD else "[[B>>A]] " if second == GOOD else "[[A=B]]"

    def send(self, handler, answer: dict, status: int = 200) -> None:
        payload = json.dumps(answer).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(payload)))
        handler.end_headers()
        handler.wfile.write(payload)
