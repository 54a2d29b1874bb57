"""Data of a company that does not exist: the same every time, made from the word lists below.

As large as Gym's data, and spread like them around the day that sessions take place on (emails.NOW): mail and visits before
it, events and tasks on both sides. IDs lie where Gym's do not, so that calls meant for other data fail rather than hit
something else. First names, and the names of customers, are given once, so that a request can say whom it means.
"""

import random
from datetime import datetime, timedelta

from nemo_cascade.environments.workplace_assistant import customers, tasks, visits

TODAY = datetime(2023, 11, 30)
DOMAIN = "fernhill.example"
COUNTS = {"emails": 500, "events": 300, "visits": 1000, "tasks": 300, "customers": 200}
FIRST_KEYS = {"emails": 21_000_000, "events": 32_000_000, "tasks": 43_000_000, "customers": 54_000_000}

ENGINEERS = (
    "Ines Bergqvist, Tomas Adeyemi, Hana Kowalczyk, Bruno Castellani, Mirela Popescu, Owen Gallagher, Saanvi Iyer, Pekka Lahtinen, "
    "Yara Haddad, Desmond Achterberg, Lucia Ferreira, Noor Rahimi, Emil Strand, Aroha Tamihana, Viktor Horvat"
).split(", ")
SALES = "Celeste Dumont, Rafael Quintana, Ximena Ortega, Gideon Mwangi, Petra Novotna".split(", ")
COLLEAGUES = ENGINEERS + SALES

EVENTS = (
    "Sprint planning, Design critique, Roadmap review, Release rehearsal, Budget walk-through, Hiring round table, "
    "Incident review, Customer call, Onboarding hour, Pairing session, Quarterly outlook, Security drill, "
    "Accessibility check, Pricing workshop, Data clinic, Retrospective, Office move briefing, Partner breakfast, Support handover, Architecture forum, Lunch and learn, "
    "Trade fair preparation, Newsletter meeting, Contract reading"
).split(", ")
ACTIONS = {
    "Back end": "Speed up, Split, Cache, Document, Retry, Migrate, Monitor, Harden".split(", "),
    "Front end": "Rebuild, Translate, Animate, Test, Tidy, Lazy-load, Restyle, Simplify".split(", "),
    "Design": "Sketch, Prototype, Redraw, Review, Annotate, Colour, Unify, Trim".split(", "),
}
OBJECTS = {
    "Back end": (
        "the invoice export, the login service, the nightly import, the search index, the mail queue, the rate "
        "limits, the audit log"
    ).split(", "),
    "Front end": (
        "the start page, the settings dialog, the order form, the help centre, the map view, the price table, " "the error pages"
    ).split(", "),
    "Design": (
        "the icon set, the welcome tour, the mobile menu, the brand colours, the report layout, the empty states, "
        "the newsletter"
    ).split(", "),
}
CUSTOMER_FIRST = (
    "Abel Bianca Cyrus Delphine Ezra Fiona Gustav Hedda Idris Juno Kasper Leona Marek Nadine Otis Paloma Quentin "
    "Rosa Silas Tilda"
).split()
CUSTOMER_LAST = "Abernathy Brandt Cordero Dvorak Eklund Fontaine Grimaldi Hollis Ishikawa Jansen".split()
COMPANIES = (
    "amberforge, bluequay, copperleaf, driftline, eastgrove, flintworks, greyharbor, highmoor, ironbrook, juniper-labs"
).split(", ")

SUBJECTS = (
    "{task}: where we are",
    "Question about {task}",
    "{event}: notes",
    "Before the {event}",
    "News from {company}",
    "Numbers for {company}",
)
GREETINGS = ("Hi,", "Hello,", "Good morning,", "A quick note:", "Hey there,")
SENTENCES = (
    "I got further than I thought and would like you to look at it.",
    "One part still waits for an answer from the other team.",
    "Could you tell me by Thursday whether that suits you?",
    "The figures are in the shared folder, next to last month's.",
    'Somebody called it "almost done", which is about right.',
    "I had to move a few things, so please check the dates.",
    "There is a café round the corner if you would rather talk.",
    "We should decide this together, not by e-mail.",
    "It took two days longer, mostly because of the tests.",
    "No hurry, but I did not want it to get lost.",
    "They asked for a second offer, with training this time.",
    "If you agree, I will tell the others.",
)
CLOSINGS = ("Thanks", "Best wishes", "See you", "Cheers", "Many thanks")
CONTACTS = (
    "called them",
    "sent the brochure",
    "met at the fair",
    "talked about the price",
    "showed the beta",
    "wrote a reminder",
)


def address(name: str) -> str:
    """A colleague's e-mail address."""
    return f"{name.lower().replace(' ', '.')}@{DOMAIN}"


def generate() -> tuple[list[str], dict[str, list[dict]]]:
    """The address book, and the records of every database, all of them texts, as they would stand in a file."""
    rng = random.Random("fernhill")
    made = {"tasks": _tasks(rng), "customers": _customers(rng), "events": _events(rng), "visits": _visits(rng)}
    made["emails"] = _emails(rng, made["tasks"])
    for name, first in FIRST_KEYS.items():
        keys = [str(first + place) for place in range(len(made[name]))]
        rng.shuffle(keys)
        made[name] = [{f"{name[:-1]}_id": key, **record} for key, record in zip(keys, made[name])]
    return [address(name) for name in COLLEAGUES], made


def _day(rng: random.Random, earliest: int, latest: int) -> datetime:
    """A day, so many days from today."""
    return TODAY + timedelta(days=rng.randint(earliest, latest))


def _tasks(rng: random.Random) -> list[dict]:
    records = [
        {
            "task_name": f"{rng.choice(ACTIONS[board])} {rng.choice(OBJECTS[board])}",
            "assigned_to_email": address(rng.choice(ENGINEERS)),
            "list_name": rng.choices(tasks.LISTS, (5, 2, 2, 2))[0],
            "due_date": f"{_day(rng, -4, 18):%Y-%m-%d}",
            "board": board,
        }
        for board in tasks.BOARDS
        for _ in range(COUNTS["tasks"] // len(tasks.BOARDS))
    ]
    return sorted(records, key=lambda record: record["due_date"])


def _customers(rng: random.Random) -> list[dict]:
    names = [f"{first} {last}" for first in CUSTOMER_FIRST for last in CUSTOMER_LAST]
    records = []
    for name in rng.sample(names, COUNTS["customers"]):
        contact, told = _day(rng, -60, 0), rng.randint(0, 3)
        records.append(
            {
                "assigned_to_email": address(rng.choice(SALES)),
                "customer_name": name,
                "customer_email": f"{name.lower().replace(' ', '.')}@{rng.choice(COMPANIES)}.example",
                "customer_phone": f"555-01{rng.randint(0, 99):02d}" if rng.random() < 0.5 else "",
                "last_contact_date": f"{contact:%Y-%m-%d} {rng.randint(9, 17):02d}:00:00",
                "product_interest": rng.choice(customers.PRODUCTS),
                "status": rng.choice(customers.STATUSES),
                "follow_up_by": f"{_day(rng, 1, 70):%Y-%m-%d} 17:00:00",
                "notes": " ".join(f"{contact - timedelta(days=9 * n):%Y-%m-%d}: {rng.choice(CONTACTS)}." for n in range(told)),
            }
        )
    return sorted(records, key=lambda record: record["last_contact_date"], reverse=True)


def _events(rng: random.Random) -> list[dict]:
    """No two start at the same time: every half-hour of working days is taken once at most."""
    days = [TODAY + timedelta(days=days) for days in range(-90, 45)]
    starts = [day + timedelta(minutes=minutes) for day in days if day.weekday() < 5 for minutes in range(9 * 60, 17 * 60, 30)]
    return [
        {
            "event_name": rng.choice(EVENTS),
            "participant_email": address(rng.choice(COLLEAGUES)),
            "event_start": f"{start:%Y-%m-%d %H:%M:%S}",
            "duration": str(rng.choice((15, 30, 45, 60))),
        }
        for start in sorted(rng.sample(starts, COUNTS["events"]))
    ]


def _visits(rng: random.Random) -> list[dict]:
    return [
        {
            "date_of_visit": f"{_day(rng, -90, -1):%Y-%m-%d}",
            "visitor_id": f"{rng.randint(0, 9999):04d}",
            "page_views": str(rng.randint(1, 30)),
            "session_duration_seconds": str(rng.randint(1, 95)),
            "traffic_source": rng.choices(visits.SOURCES, (5, 2, 2, 3))[0],
            "user_engaged": str(rng.random() < 0.5),
        }
        for _ in range(COUNTS["visits"])
    ]


def _emails(rng: random.Random, todo: list[dict]) -> list[dict]:
    """No two were sent at the same time. One in ten went out, the others came in."""
    minutes = rng.sample(range(60 * 24 * 58), COUNTS["emails"])
    records = []
    for minute in sorted(minutes, reverse=True):
        name, words = rng.choice(COLLEAGUES), rng.sample(SENTENCES, rng.randint(2, 3))
        subject = rng.choice(SUBJECTS).format(
            task=rng.choice(todo)["task_name"], event=rng.choice(EVENTS), company=rng.choice(COMPANIES).capitalize()
        )
        incoming = rng.random() < 0.9
        lines = [rng.choice(GREETINGS), " ".join(words), rng.choice(CLOSINGS), name.split()[0] if incoming else "Sam"]
        records.append(
            {
                "inbox/outbox": "inbox" if incoming else "outbox",
                "sender/recipient": address(name),
                "subject": subject,
                "sent_datetime": f"{TODAY - timedelta(minutes=minute, seconds=-rng.randint(0, 59)):%Y-%m-%d %H:%M:%S}",
                "body": "\n".join(lines),
            }
        )
    return records
