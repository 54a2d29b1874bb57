"""Random calls of the workplace tools, good and bad, and a form in which what two implementations make of them compares.

Only the standard library, because Gym's side of the comparison runs where nemo_cascade is not installed.
"""

import hashlib
import json
import random
import re

CASE_MATTERS = ("status", "list_name", "board")
KEYS = {"emails": "email_id", "events": "event_id", "tasks": "task_id", "customers": "customer_id"}
PREFIX = {"emails": "email", "events": "calendar", "tasks": "project_management", "customers": "customer_relationship_manager"}
# Words that occur in parts of records, and a few patterns.
WORDS = (
    "a, the, re, plan, review, @, ., example, lo, i.e, 2023-12, Back, design, zzz, won, e$, ^s, a|b, (, *, " "[ab], soft"
).split(", ")
TIMES = (
    "2023-11-30 09:00:00, 2023-12-01, 2023-12-04T10:30:00, 2023-12-01 9:30, tomorrow, 2023-13-01, next Monday at 9, 25:00".split(
        ", "
    )
)
DAYS = "2023-11-01, 2023-11-15, 2023-11-29, 2023-12-05, 2023-10-01 12:00:00, never, 2024-01-31".split(", ")
BAD = [None, "", 0, 5, 2.5, True, False, "5", "none", "x" * 300, "  ", "ÄÖ", "00000000", "99999999", -1]
# Where Gym and we are known to differ, see test_workplace_gym.py: numbers as times, pages of fewer than no records.
TIMES_ARE_TEXTS = ("time_min", "time_max", "date_min", "date_max", "event_start", "new_value")


class Corpus:
    """Draws calls about the records of `tables` ({name: [records]}) and the addresses of `directory`."""

    def __init__(self, tables: dict[str, list[dict]], directory: list[str], seed: int = 0):
        self.rng, self.directory = random.Random(f"workplace-{seed}"), directory
        # Few, so that calls of a sequence meet on the same records.
        self.tables = {name: self.rng.sample(list(rows), 6) for name, rows in tables.items()}
        self.last = {name: max(row[key] for row in tables[name]) for name, key in KEYS.items()}

    def sequence(self) -> list[dict]:
        """Up to eight calls of any kind."""
        return [self.call(self.rng.choice(self.kinds())) for _ in range(self.rng.randint(1, 8))]

    def pair(self) -> tuple[list[dict], list[dict]]:
        """(predicted, expected): calls with effect, and the same with something changed that may or may not matter."""
        rng = self.rng
        expected = [self.call(rng.choice(self.changes()), wrong=0.03) for _ in range(rng.randint(1, 4))]
        predicted = [dict(call) for call in expected]
        change = rng.choice(("same", "case", "more", "less", "order", "value", "retry", "all"))
        if change in ("case", "all"):
            predicted = [
                {**call, "arguments": {k: self.other_case(v) for k, v in call["arguments"].items()}} for call in predicted
            ]
        if change in ("more", "all"):
            predicted.insert(rng.randint(0, len(predicted)), self.call(rng.choice(self.kinds())))
        if change == "less":
            predicted.pop(rng.randrange(len(predicted)))
        if change in ("order", "all"):
            rng.shuffle(predicted)
        if change == "value":
            predicted[-1] = self.call(predicted[-1]["name"])
        if change == "retry":
            name = predicted[0]["name"]
            predicted.insert(0, {"name": name, "arguments": {"nonsense": 1}})
        return predicted, expected

    def other_case(self, value):
        return self.rng.choice((value.upper(), value.lower(), value)) if isinstance(value, str) else value

    def call(self, name: str, wrong: float = 0.12) -> dict:
        rng, arguments = self.rng, self.arguments(name)
        for parameter in list(arguments):
            roll = rng.random()
            if roll < wrong / 2:
                wrong_value = rng.choice(BAD)
                texts_only = parameter in TIMES_ARE_TEXTS or parameter == "page_size"
                arguments[parameter] = (
                    str(wrong_value) if texts_only and not isinstance(wrong_value, (str, type(None))) else wrong_value
                )
            elif roll < wrong:
                del arguments[parameter]
        if rng.random() < wrong / 10:
            arguments["unknown"] = "x"
        return {"name": name if rng.random() > wrong / 20 else name + "s", "arguments": arguments}

    def kinds(self) -> tuple[str, ...]:
        return self.changes() + self.lookups()

    def changes(self) -> tuple[str, ...]:
        return (
            "email_send_email, email_delete_email, email_forward_email, email_reply_email, calendar_create_event, "
            "calendar_delete_event, calendar_update_event, analytics_create_plot, project_management_create_task, "
            "project_management_delete_task, project_management_update_task, customer_relationship_manager_update_customer, "
            "customer_relationship_manager_add_customer, customer_relationship_manager_delete_customer"
        ).split(", ")

    def lookups(self) -> tuple[str, ...]:
        return (
            "company_directory_find_email_address, email_get_email_information_by_id, email_search_emails, "
            "calendar_get_event_information_by_id, calendar_search_events, analytics_get_visitor_information_by_id, "
            "analytics_total_visits_count, analytics_engaged_users_count, analytics_traffic_source_count, "
            "analytics_get_average_session_duration, project_management_get_task_information_by_id, "
            "project_management_search_tasks, customer_relationship_manager_search_customers"
        ).split(", ")

    def arguments(self, name: str) -> dict:
        """All that the tool takes, each of a value that fits or nearly does."""
        rng = self.rng
        email, event, task, customer, visit = (
            rng.choice(self.tables[n]) for n in ("emails", "events", "tasks", "customers", "visits")
        )
        somebody = rng.choice((*self.directory, self.directory[0].upper(), "stranger@far.example", "nobody"))
        text = rng.choice(("A note", 'Éclair, and "more"', "ok", "Line\nbreak", email["subject"]))
        key = {name: self.key(name) for name in KEYS}
        table = next((name_ for name_, prefix in PREFIX.items() if name.startswith(prefix)), None)
        pages = self.some({"page": rng.choice((1, 2, 3, 50, 0, -1)), "page_size": rng.choice((1, 3, 5, 10, 100, 0))})
        if name.endswith("_by_id") and table:
            return {KEYS[table]: key[table], "field": rng.choice([*self.tables[table][0], "nothing"])}
        if name.split("_")[-2] == "delete":
            return {KEYS[table]: key[table]}
        if name.split("_")[-2] == "update":
            field = rng.choice([*self.tables[table][0], "nothing"])
            others = (rng.choice(self.tables[table])[field] if field != "nothing" else "x", text, somebody)
            return {KEYS[table]: key[table], "field": field, "new_value": rng.choice((others[0], *others))}
        days = self.some({"time_min": rng.choice(DAYS), "time_max": rng.choice(DAYS)})
        sources = ("direct", "referral", "search engine", "Direct", "moon")
        return {
            "company_directory_find_email_address": lambda: {"name": self.part(somebody)},
            "email_search_emails": lambda: self.some(
                {
                    "query": rng.choice(
                        (self.part(email["subject"]), email["sender/recipient"].split(".")[0], "the " + self.part(email["body"]))
                    ),
                    "date_min": rng.choice(DAYS),
                    "date_max": rng.choice(DAYS),
                }
            )
            | pages,
            "email_send_email": lambda: {"recipient": somebody, "subject": text, "body": rng.choice((text, email["body"]))},
            "email_forward_email": lambda: {"email_id": key["emails"], "recipient": somebody},
            "email_reply_email": lambda: {"email_id": key["emails"], "body": text},
            "calendar_search_events": lambda: self.some(
                {
                    "query": rng.choice((self.part(event["event_name"]), event["participant_email"], rng.choice(WORDS))),
                    "time_min": rng.choice(TIMES),
                    "time_max": rng.choice(TIMES),
                }
            )
            | pages,
            "calendar_create_event": lambda: {
                "event_name": text,
                "participant_email": somebody,
                "event_start": rng.choice((event["event_start"], rng.choice(TIMES))),
                "duration": rng.choice(("30", "60", 45, "0", "-5", "soon", "1.5")),
            },
            "analytics_get_visitor_information_by_id": lambda: {"visitor_id": rng.choice((visit["visitor_id"], "none"))},
            "analytics_create_plot": lambda: {
                "time_min": rng.choice(DAYS),
                "time_max": rng.choice(DAYS),
                "value_to_plot": rng.choice(("total_visits", "user_engaged", "visits_search_engine", "visits")),
                "plot_type": rng.choice(("bar", "line", "scatter", "histogram", "pie", "Bar")),
            },
            "analytics_total_visits_count": lambda: days,
            "analytics_engaged_users_count": lambda: days,
            "analytics_traffic_source_count": lambda: days | self.some({"traffic_source": rng.choice(sources)}),
            "analytics_get_average_session_duration": lambda: days,
            "project_management_search_tasks": lambda: self.some(
                {
                    "task_name": self.part(task["task_name"]),
                    "assigned_to_email": rng.choice((task["assigned_to_email"], somebody)),
                    "list_name": self.part(task["list_name"]),
                    "due_date": task["due_date"],
                    "board": self.part(task["board"]),
                },
                0.35,
            ),
            "project_management_create_task": lambda: {
                "task_name": text,
                "assigned_to_email": rng.choice((task["assigned_to_email"], task["assigned_to_email"].upper(), somebody)),
                "list_name": rng.choice(("Backlog", "In Review", "in review", "Done")),
                "due_date": rng.choice(DAYS),
                "board": rng.choice(("Design", "Back end", "Back End", "Sales")),
            },
            "customer_relationship_manager_search_customers": lambda: self.some(
                {
                    "customer_name": self.part(customer["customer_name"]),
                    "customer_email": self.part(customer["customer_email"]),
                    "product_interest": self.part(customer["product_interest"]),
                    "status": rng.choice((customer["status"], customer["status"].lower())),
                    "assigned_to_email": customer["assigned_to_email"],
                    "last_contact_date_min": rng.choice(DAYS),
                    "last_contact_date_max": rng.choice(DAYS),
                    "follow_up_by_min": rng.choice(DAYS),
                    "follow_up_by_max": rng.choice(DAYS),
                },
                0.25,
            )
            | pages,
            "customer_relationship_manager_add_customer": lambda: {
                "customer_name": text,
                "assigned_to_email": somebody,
                "status": rng.choice(("Lead", "Won", "lead", "Friend")),
            }
            | self.some(
                {
                    "customer_email": somebody,
                    "customer_phone": "555-0100",
                    "last_contact_date": rng.choice(DAYS),
                    "product_interest": rng.choice(("Software", "Cheese")),
                    "notes": text,
                    "follow_up_by": rng.choice(DAYS),
                }
            ),
        }[name]()

    def key(self, table: str) -> str:
        """Of a record, of one that the session may have made, or of none."""
        made = str(int(self.last[table]) + self.rng.randint(1, 2))
        known = [row[KEYS[table]] for row in self.tables[table]]
        return self.rng.choice((*known, self.last[table], made, made.zfill(8), "12", "abcdefgh"))

    def part(self, text: str | None) -> str:
        """A word of a text, sometimes in capitals, or a pattern."""
        words = (text or "a").split()
        return self.rng.choice((self.rng.choice(words), self.rng.choice(words).upper(), text or "a", self.rng.choice(WORDS)))

    def some(self, arguments: dict, share: float = 0.5) -> dict:
        return {name: value for name, value in arguments.items() if self.rng.random() < share}


# ------------------------------------------------------------------------------------------------ comparing


def answer_form(output) -> list[str]:
    """What a tool gave as ["text", it] for a message, ["data", hash] for anything found or made. Quoted parts of messages vary."""
    if isinstance(output, str) and not re.fullmatch(r"\d+|plots/.*", output, re.DOTALL):
        return ["text", re.sub("'[^']*'", "''", output)]
    return ["data", hashed(plain(output))]


def plain(value):
    """Data without what pandas adds: not-a-number for a missing cell, and a float after an average was asked for."""
    if isinstance(value, dict):
        return {str(key): plain(cell) for key, cell in value.items()} | (
            {"session_duration_seconds": float(value["session_duration_seconds"])} if "session_duration_seconds" in value else {}
        )
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return None if value != value else round(value, 9)
    return value


def state_form(tables: dict[str, list[dict]], base: dict[str, list[dict]], compared: bool = False) -> str:
    """Hash of what the tables hold and the base does not, and the other way round, in order; `compared`: as a verdict sees it.

    A table that is the very object in `base` was not touched.
    """
    differences = {}
    for name, rows in sorted(tables.items()):
        if rows is not base[name]:
            now, before = [cells(row, compared) for row in rows], [cells(row, compared) for row in base[name]]
            was, is_ = set(before), set(now)
            new = [[place, row] for place, row in enumerate(now) if row not in was]
            gone = [place for place, row in enumerate(before) if row not in is_]
            if now != before:
                differences[name] = [len(now), new, gone]
    return hashed(differences)


def cells(row: dict, compared: bool) -> tuple:
    values = {key: plain(value) for key, value in sorted(row.items())}
    if compared:
        lowered = {key: value.lower() if isinstance(value, str) else None for key, value in values.items()}
        values = {key: values[key] if key in CASE_MATTERS else lowered[key] for key in values}
    return tuple((key, type(value).__name__, value) for key, value in values.items())


def hashed(value) -> str:
    text = json.dumps(value, sort_keys=True, default=lambda number: number.item())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Codebook:
    """Numbers the messages of each tool in the order in which they first appear.

    Two implementations that say the same in other words get the same numbers, as long as each tells apart what the other does.
    """

    def __init__(self):
        self.numbers: dict[tuple[str, str], int] = {}
        self.counts: dict[str, int] = {}

    def of(self, tool: str, form: list[str]) -> str:
        kind, text = form
        if kind != "text":
            return text if kind == "data" else kind
        if (tool, text) not in self.numbers:
            self.counts[tool] = self.numbers[tool, text] = self.counts.get(tool, 0) + 1
        return f"message {self.numbers[tool, text]}"
