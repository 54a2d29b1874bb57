"""The calendar."""

from nemo_cascade.environments.workplace_assistant.search import Refused, containing, moment, page_of

COLUMNS = ("event_id", "event_name", "participant_email", "event_start", "duration")
KEY_DIGITS = 8


def start(row):
    return moment(row["event_start"])


def get_event_information_by_id(office, /, event_id=None, field=None):
    if not event_id:
        raise Refused("Which event? event_id is missing.")
    if not field:
        raise Refused("What about the event? field is missing.")
    check_key(event_id)
    if field not in COLUMNS:
        raise Refused(f"An event has no such field; it has {', '.join(COLUMNS)}.")
    return {field: known(office, event_id)[field]}


def search_events(office, /, query="", time_min=None, time_max=None, page=1, page_size=5):
    first, last = bound(time_min, "time_min"), bound(time_max, "time_max")
    rows = containing(office.events.rows, query, "event_name", "participant_email")
    if first:
        rows = [row for row in rows if row.derive(start) >= first]
    if last:
        rows = [row for row in rows if row.derive(start) <= last]
    rows.sort(key=lambda row: row.derive(start), reverse=True)
    return page_of("events", rows, page, page_size) if rows else "There are no such events."


def create_event(office, /, event_name=None, participant_email=None, event_start=None, duration=None):
    if not event_name:
        raise Refused("What is the event called? event_name is missing.")
    if not participant_email:
        raise Refused("Who takes part? participant_email is missing.")
    if not event_start:
        raise Refused("When does the event start? event_start is missing.")
    if not duration:
        raise Refused("How long is the event? duration is missing.")
    check_start(event_start)
    check_duration(duration)
    participant, key = participant_email.lower(), office.events.next_key().zfill(KEY_DIGITS)
    office.events.add(
        event_id=key, event_name=event_name, participant_email=participant, event_start=event_start, duration=duration
    )
    return key


def delete_event(office, /, event_id=None):
    if not event_id:
        raise Refused("Which event? event_id is missing.")
    check_key(event_id)
    known(office, event_id)
    office.events.delete(event_id)
    return "The event is deleted."


def update_event(office, /, event_id=None, field=None, new_value=None):
    if not event_id or not field or not new_value:
        raise Refused("An update needs an event_id, a field and a new_value.")
    check_key(event_id)
    if field not in COLUMNS[1:]:
        raise Refused(f"That field cannot be set; these can: {', '.join(COLUMNS[1:])}.")
    if field == "event_start":
        check_start(new_value)
    elif field == "duration":
        check_duration(new_value)
    known(office, event_id)
    office.events.update(event_id, field, new_value.lower() if field == "participant_email" else new_value)
    return "The event is updated."


def check_key(event_id) -> None:
    if not isinstance(event_id, str) or len(event_id) != KEY_DIGITS or not event_id.isdigit():
        raise Refused(f"An event_id is a text of {KEY_DIGITS} digits.")


def check_start(value) -> None:
    try:
        moment(value)
    except ValueError:
        raise Refused("event_start must be given as YYYY-MM-DD HH:MM:SS.") from None


def check_duration(value) -> None:
    try:
        minutes = int(value)
    except ValueError:
        raise Refused("duration must be a whole number of minutes.") from None
    if minutes <= 0:
        raise Refused("duration must be more than nothing.")


def bound(value, name: str):
    try:
        return moment(value) if value else None
    except ValueError:
        raise Refused(f"{name} must be given as YYYY-MM-DD HH:MM:SS.") from None


def known(office, event_id):
    event = office.events.find(event_id)
    if event is None:
        raise Refused("There is no event of that event_id.")
    return event


TOOLS = {
    "calendar_get_event_information_by_id": get_event_information_by_id,
    "calendar_search_events": search_events,
    "calendar_create_event": create_event,
    "calendar_delete_event": delete_event,
    "calendar_update_event": update_event,
}
