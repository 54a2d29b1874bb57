"""Requests to an office assistant, in plain English, about the generated databases of the workplace environment.

"demo": one call, and the request says all that it takes. "rl": also requests whose calls need look-ups first (addresses, IDs,
which records are meant), take several calls, or turn out to need none. A demonstration makes the calls without the look-ups.
"""

import hashlib
import json
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache

from nemo_cascade.data.chat import render_tool_call
from nemo_cascade.environments.workplace_assistant import DEFINITIONS
from nemo_cascade.environments.workplace_assistant.customers import PRODUCTS, STATUSES
from nemo_cascade.environments.workplace_assistant.data import GENERATED, ROW_KEY, Databases, databases
from nemo_cascade.environments.workplace_assistant.generated import COLLEAGUES, ENGINEERS, SALES, TODAY, address
from nemo_cascade.environments.workplace_assistant.tasks import BOARDS, LISTS
from nemo_cascade.environments.workplace_assistant.visits import PLOTS, VALUES

SYSTEM = (
    "Today is Thursday, 30 November 2023, and it is 23:59. You work for Sam at Fernhill and have tools for Sam's e-mail, calendar, "
    "tasks and customers and for the figures of the web site. Meetings lie between 9:00 and 18:00. Do what Sam asks, and "
    "nothing else."
)
NOTHING = "There is nothing to do."
# As many records as one request touches at most.
MOST = 6
# One request in so many that could find something is made to find nothing.
EMPTY_EVERY = 12

SUBJECTS = (
    "Lunch on Friday, The new office, Travel plans, A question, Tomorrow's agenda, Holiday cover, Printer "
    "trouble, Small change"
).split(", ")
BODIES = (
    "Can we talk about it tomorrow morning?",
    "Please have a look when you find the time.",
    "All is settled, nothing for you to do.",
    "I am out of the office until Tuesday.",
    "Could you send me the latest figures?",
    "Let us keep it short this week.",
)
REPLIES = ("Thank you, I will look into it.", "That suits me well.", "Let us talk about it on Monday.", "Go ahead, please.")
TASKS = (
    "Write the release notes, Clean up the backlog, Update the licences, Measure the loading time, Check the "
    "contrast, Rename the modules"
).split(", ")
MEETINGS = "Coffee with the team, Budget talk, Feedback round, Project start, Risk review, Interview".split(", ")
CUSTOMERS = "Wilma Sorensen, Jasper Kwok, Amara Lindqvist, Teodor Ruiz, Ottilie Baines, Ravi Menon".split(", ")

Calls = list[tuple[str, dict]]


def draw(rng: random.Random, level: str) -> dict:
    kinds = GIVEN if level == "demo" else GIVEN + LOOKED_UP + LOOKED_UP
    kind = rng.choice(kinds)
    request, calls = kind(rng, databases(GENERATED))
    return {
        "responses_create_params": {
            "input": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": request}],
            "tools": DEFINITIONS,
            "parallel_tool_calls": False,
        },
        "ground_truth": [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in calls],
        "category": f"workplace_assistant_{kind.__name__}",
        "environment_name": "workplace_assistant",
        ROW_KEY: GENERATED,
        "id": int.from_bytes(hashlib.sha256(request.encode()).digest()[:4], "big"),
    }


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """No thought; the expected calls, one after another, or a word that there are none."""
    calls = [{"name": call["name"], "arguments": json.loads(call["arguments"])} for call in row["ground_truth"]]
    return "", "\n".join(map(render_tool_call, calls)) or NOTHING


# ---------------------------------------------------------------------------- requests that say all that it takes


def mail(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    recipient, subject, body = rng.choice(data.directory), rng.choice(SUBJECTS), rng.choice(BODIES)
    request = rng.choice(
        (
            'Write to {0}, subject "{1}": "{2}"',
            'Send an e-mail with the subject "{1}" and the text "{2}" to {0}.',
            'Please e-mail {0}. The subject is "{1}", the text "{2}"',
        )
    )
    return request.format(recipient, subject, body), [
        ("email_send_email", {"recipient": recipient, "subject": subject, "body": body})
    ]


def meeting(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    name, somebody, start, minutes = (
        rng.choice(MEETINGS),
        rng.choice(data.directory),
        _start(rng),
        rng.choice(("15", "30", "45", "60")),
    )
    request = rng.choice(
        (
            'Put "{0}" with {1} into my calendar on {2} at {3}, for {4} minutes.',
            'I meet {1} on {2} at {3} for {4} minutes. Please enter it as "{0}".',
        )
    ).format(name, somebody, _said(start), f"{start:%H:%M}", minutes)
    return request, [_meeting(name, somebody, start, minutes)]


def plot(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    first = TODAY - timedelta(days=rng.randint(20, 85))
    days = {"time_min": f"{first:%Y-%m-%d}", "time_max": f"{first + timedelta(days=rng.randint(3, 18)):%Y-%m-%d}"}
    value, form = rng.choice(VALUES), rng.choice(PLOTS)
    request = rng.choice(
        (
            "Make a {0} plot of {1} from {2} to {3}.",
            "I need {1} between {2} and {3} as a {0} plot.",
        )
    ).format(form, value, days["time_min"], days["time_max"])
    return request, [("analytics_create_plot", days | {"value_to_plot": value, "plot_type": form})]


def new_task(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    due, task = _start(rng), {"task_name": rng.choice(TASKS), "assigned_to_email": address(rng.choice(ENGINEERS))}
    task |= {"list_name": rng.choice(LISTS[:3]), "due_date": f"{due:%Y-%m-%d}", "board": rng.choice(BOARDS)}
    request = rng.choice(
        (
            'Create the task "{task_name}" for {assigned_to_email}, due {due_date}, in the list {list_name} of the {board} board.',
            'On the {board} board, {assigned_to_email} gets a new task "{task_name}" in {list_name}, due on {due_date}.',
        )
    )
    return request.format(**task), [("project_management_create_task", task)]


def new_customer(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    customer = {
        "customer_name": rng.choice(CUSTOMERS),
        "assigned_to_email": address(rng.choice(SALES)),
        "status": rng.choice(STATUSES),
    }
    customer["product_interest"] = rng.choice(PRODUCTS)
    request = rng.choice(
        (
            "Add {customer_name} to our customers: status {status}, interested in {product_interest}, for {assigned_to_email}.",
            "New customer, {customer_name}, with the status {status}. Product: {product_interest}. In charge: {assigned_to_email}",
        )
    )
    return request.format(**customer), [("customer_relationship_manager_add_customer", customer)]


def by_id(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    task, event = rng.choice(data.tasks), rng.choice(data.events)
    column = rng.choice([name for name in LISTS if name != task["list_name"]])
    minutes = rng.choice([text for text in ("20", "50", "75", "90") if text != event["duration"]])
    return rng.choice(
        (
            (f"Delete task {task['task_id']}.", [("project_management_delete_task", {"task_id": task["task_id"]})]),
            (f"Move task {task['task_id']} to the list {column}.", [_task_update(task, "list_name", column)]),
            (f"Take event {event['event_id']} out of my calendar.", [("calendar_delete_event", {"event_id": event["event_id"]})]),
            (f"Event {event['event_id']} takes {minutes} minutes now.", [_event_update(event, "duration", minutes)]),
        )
    )


GIVEN = [mail, meeting, plot, new_task, new_customer, by_id]

# ------------------------------------------------------------------------------------- requests that need look-ups


def mail_by_name(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    people, subject, body = rng.sample(COLLEAGUES, rng.randint(1, 3)), rng.choice(SUBJECTS), rng.choice(BODIES)
    named = " and ".join(map(_first, people))
    each = " Each gets an e-mail of their own, in that order." if len(people) > 1 else ""
    request = rng.choice(('Write to {0}, subject "{1}", text "{2}"{3}', 'E-mail {0}: "{1}" is the subject, "{2}" the text.{3}'))
    calls = [("email_send_email", {"recipient": address(name), "subject": subject, "body": body}) for name in people]
    return request.format(named, subject, body, each), calls


def answer_mail(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    email, name = _latest_mail(rng, data)
    body = rng.choice(REPLIES)
    request = rng.choice(
        ('Answer {0}\'s last e-mail about "{1}" with "{2}"', 'Reply "{2}" to the latest mail that {0} sent me about "{1}".')
    )
    return request.format(name, email["subject"], body), [("email_reply_email", {"email_id": email["email_id"], "body": body})]


def pass_on_mail(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    email, name = _latest_mail(rng, data)
    other = rng.choice([person for person in COLLEAGUES if address(person) != email["sender/recipient"]])
    request = rng.choice(
        (
            'Forward {0}\'s latest e-mail about "{1}" to {2}.',
            '{2} should see the last e-mail that {0} sent me about "{1}". Forward it.',
        )
    )
    return request.format(name, email["subject"], _first(other)), [
        ("email_forward_email", {"email_id": email["email_id"], "recipient": address(other)})
    ]


def delete_mail(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    person, since = rng.choice(COLLEAGUES), f"{TODAY - timedelta(days=rng.randint(2, 25)):%Y-%m-%d}"
    found = [
        row
        for row in data.emails
        if row["sender/recipient"] == address(person) and row["inbox/outbox"] == "inbox" and row["sent_datetime"] >= since
    ]
    request = rng.choice(
        (
            "Delete all e-mails that {0} sent me on {1} or later.",
            "I do not need the e-mails that came from {0} since {1}, that day included. Delete them.",
        )
    )
    calls = [("email_delete_email", {"email_id": row["email_id"]}) for row in found]
    return _if_few(rng, request.format(_first(person), since), calls, delete_mail, data)


def change_event(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    event, said = _coming_event(rng, data)
    start = datetime.fromisoformat(event["event_start"])
    later, name = start + timedelta(days=7), rng.choice(MEETINGS)
    minutes = rng.choice([text for text in ("20", "50", "75", "90") if text != event["duration"]])
    return rng.choice(
        (
            (f"Move {said} to the same time a week later.", [_event_update(event, "event_start", f"{later:%Y-%m-%d %H:%M:%S}")]),
            (f'Rename {said} to "{name}".', [_event_update(event, "event_name", name)]),
            (
                f"{said[0].upper()}{said[1:]} will take {minutes} minutes. Change that in the calendar.",
                [_event_update(event, "duration", minutes)],
            ),
        )
    )


def cancel_and_tell(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    event, said = _coming_event(rng, data)
    body = rng.choice(("I am sorry, something came up.", "We will find another day.", "It is no longer needed."))
    letter = {"recipient": event["participant_email"], "subject": f"Cancelled: {event['event_name']}", "body": body}
    request = f'Cancel {said} and write to them, subject "{letter["subject"]}", text "{body}"'
    return request, [("calendar_delete_event", {"event_id": event["event_id"]}), ("email_send_email", letter)]


def clear_calendar(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    first = TODAY + timedelta(days=rng.randint(1, 35))
    days = [f"{first + timedelta(days=n):%Y-%m-%d}" for n in range(rng.randint(1, 4))]
    found = [row for row in data.events if row["event_start"][:10] in days]
    span = f"on {_said(first)}" if len(days) == 1 else f"from {days[0]} to {days[-1]}, both days included"
    request = rng.choice(("I am away {0}. Cancel all my meetings then.", "Clear my calendar {0}.")).format(span)
    calls = [("calendar_delete_event", {"event_id": row["event_id"]}) for row in found]
    return _if_few(rng, request, calls, clear_calendar, data)


def move_tasks(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    person, board, (old, new) = rng.choice(ENGINEERS), rng.choice(BOARDS), rng.sample(LISTS, 2)
    request = rng.choice(
        (
            "Move all of {0}'s tasks from {2} to {3} on the {1} board.",
            "Everything of {0}'s that is in {2} on the {1} board goes to {3}.",
        )
    ).format(_first(person), board, old, new)
    found = _tasks(data, assigned_to_email=address(person), board=board, list_name=old)
    return _if_few(rng, request, [_task_update(row, "list_name", new) for row in found], move_tasks, data)


def hand_over_tasks(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    (person, other), column = rng.sample(ENGINEERS, 2), rng.choice(LISTS[:3])
    day = f"{TODAY + timedelta(days=rng.randint(1, 12)):%Y-%m-%d}"
    request = rng.choice(
        (
            "{0} is ill. Give those tasks in {3} that are due on {2} or earlier to {1}.",
            "{1} takes over all tasks in {3} that {0} has to finish by {2}.",
        )
    ).format(_first(person), _first(other), day, column)
    found = [row for row in _tasks(data, assigned_to_email=address(person), list_name=column) if row["due_date"] <= day]
    return _if_few(rng, request, [_task_update(row, "assigned_to_email", address(other)) for row in found], hand_over_tasks, data)


def task_and_mail(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    _, [(tool, task)] = new_task(rng, data)
    person = next(name for name in ENGINEERS if address(name) == task["assigned_to_email"])
    letter = {
        "recipient": address(person),
        "subject": f"New task: {task['task_name']}",
        "body": f"It is due on {task['due_date']}.",
    }
    request = (
        f'{_first(person)} is to do "{task["task_name"]}" by {task["due_date"]}. Create the task in '
        f'{task["list_name"]} on the {task["board"]} board '
        f'and write to them, subject "{letter["subject"]}", text "{letter["body"]}"'
    )
    return request, [(tool, task), ("email_send_email", letter)]


def reassign_customers(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    (person, other), status, product = rng.sample(SALES, 2), rng.choice(STATUSES), rng.choice(PRODUCTS)
    request = rng.choice(
        (
            "{1} takes over all of {0}'s customers whose status is {2} and who are interested in {3}.",
            "Give {0}'s customers with the status {2} and an interest in {3} to {1}.",
        )
    ).format(_first(person), _first(other), status, product)
    found = _customers(data, assigned_to_email=address(person), status=status, product_interest=product)
    return _if_few(
        rng, request, [_customer_update(row, "assigned_to_email", address(other)) for row in found], reassign_customers, data
    )


def delete_customers(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    person, product = rng.choice(SALES), rng.choice(PRODUCTS)
    request = rng.choice(
        (
            "Delete {0}'s lost customers who were interested in {1}.",
            "We need no records of customers that {0} lost over {1}. Delete them.",
        )
    ).format(_first(person), product)
    found = _customers(data, assigned_to_email=address(person), status="Lost", product_interest=product)
    calls = [("customer_relationship_manager_delete_customer", {"customer_id": row["customer_id"]}) for row in found]
    return _if_few(rng, request, calls, delete_customers, data)


def one_customer(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    customer = rng.choice(data.customers)
    status = rng.choice([text for text in STATUSES if text != customer["status"]])
    day = f"{TODAY + timedelta(days=rng.randint(75, 120)):%Y-%m-%d}"
    name, status_call = customer["customer_name"], _customer_update(customer, "status", status)
    letter = {"recipient": customer["assigned_to_email"], "subject": f"{name}: {status}", "body": "Please take note."}
    return rng.choice(
        (
            (f"{name}'s status is {status} now. Change it.", [status_call]),
            (
                f"We will get back to {name} by {day}. Put that down as the follow-up date.",
                [_customer_update(customer, "follow_up_by", day)],
            ),
            (
                f"Set {name} to {status} and tell the colleague in charge by e-mail, "
                f'subject "{letter["subject"]}", text "{letter["body"]}"',
                [status_call, ("email_send_email", letter)],
            ),
        )
    )


def plot_if_busy(rng: random.Random, data: Databases) -> tuple[str, Calls]:
    visits = _visits_by_day(data)
    day = rng.choice(sorted(visits))
    limit = max(0, visits[day] + rng.choice((-3, -2, -1, 0, 1, 2)))
    value, form = rng.choice(VALUES), rng.choice(PLOTS)
    start = f"{datetime.fromisoformat(day) - timedelta(days=7):%Y-%m-%d}"
    request = (
        f"If more than {limit} visits came on {day}, make a {form} plot of {value} from {start} to {day}. Otherwise do nothing."
    )
    plotted = ("analytics_create_plot", {"time_min": start, "time_max": day, "value_to_plot": value, "plot_type": form})
    return request, [plotted] if visits[day] > limit else []


LOOKED_UP = [
    mail_by_name,
    answer_mail,
    pass_on_mail,
    delete_mail,
    change_event,
    cancel_and_tell,
    clear_calendar,
    move_tasks,
    hand_over_tasks,
    task_and_mail,
    reassign_customers,
    delete_customers,
    one_customer,
    plot_if_busy,
]

# ------------------------------------------------------------------------------------------------------- their parts


def _if_few(rng: random.Random, request: str, calls: Calls, again: Callable, data: Databases) -> tuple[str, Calls]:
    """The request, unless it touches too many records, or none: of those that find nothing only a few are kept."""
    if len(calls) > MOST or (not calls and rng.randrange(EMPTY_EVERY)):
        return again(rng, data)
    return request, calls


def _first(name: str) -> str:
    return name.split()[0]


def _said(day: datetime) -> str:
    return f"{day.day} {day:%B}"


def _start(rng: random.Random) -> datetime:
    """A quarter of an hour from nine to four, on a day in December."""
    return TODAY + timedelta(days=rng.randint(1, 31), minutes=9 * 60 + 15 * rng.randint(0, 28))


def _meeting(name: str, somebody: str, start: datetime, minutes: str) -> tuple[str, dict]:
    about = {"event_name": name, "participant_email": somebody, "event_start": f"{start:%Y-%m-%d %H:%M:%S}", "duration": minutes}
    return "calendar_create_event", about


def _event_update(event: dict, field: str, value: str) -> tuple[str, dict]:
    return "calendar_update_event", {"event_id": event["event_id"], "field": field, "new_value": value}


def _task_update(task: dict, field: str, value: str) -> tuple[str, dict]:
    return "project_management_update_task", {"task_id": task["task_id"], "field": field, "new_value": value}


def _customer_update(customer: dict, field: str, value: str) -> tuple[str, dict]:
    return "customer_relationship_manager_update_customer", {
        "customer_id": customer["customer_id"],
        "field": field,
        "new_value": value,
    }


def _latest_mail(rng: random.Random, data: Databases) -> tuple[dict, str]:
    """The last e-mail that somebody sent about some subject, and the first name of who sent it."""
    chosen = rng.choice([row for row in data.emails if row["inbox/outbox"] == "inbox"])
    same = ("sender/recipient", "subject", "inbox/outbox")
    latest = max(
        (row for row in data.emails if all(row[key] == chosen[key] for key in same)), key=lambda row: row["sent_datetime"]
    )
    return latest, latest["sender/recipient"].split(".")[0].capitalize()


def _coming_event(rng: random.Random, data: Databases) -> tuple[dict, str]:
    """An event to come, and words that fit no other one."""
    coming = [row for row in data.events if row["event_start"] > f"{TODAY + timedelta(days=1):%Y-%m-%d}"]
    event = rng.choice(coming)
    start = datetime.fromisoformat(event["event_start"])
    name = event["participant_email"].split(".")[0].capitalize()
    return event, f'the "{event["event_name"]}" with {name} on {_said(start)} at {start:%H:%M}'


def _tasks(data: Databases, **wanted: str) -> list[dict]:
    return [row for row in data.tasks if all(row[key] == value for key, value in wanted.items())]


def _customers(data: Databases, **wanted: str) -> list[dict]:
    return [row for row in data.customers if all(row[key] == value for key, value in wanted.items())]


@cache
def _visits_by_day(data: Databases) -> dict[str, int]:
    days = [row["date_of_visit"] for row in data.visits]
    return {day: days.count(day) for day in set(days)}
