"""The mailbox."""

from nemo_cascade.environments.workplace_assistant.search import Refused, moment, page_of

COLUMNS = ("email_id", "inbox/outbox", "sender/recipient", "subject", "sent_datetime", "body")
# When everything happens that a session does, as the system prompt of Gym's rows tells the model.
NOW = "2023-11-30 23:59:00"


def searched_text(row) -> str:
    return f"{row['subject']} {row['body']} {row['sender/recipient']}".lower()


def sent(row):
    return moment(row["sent_datetime"])


def get_email_information_by_id(office, /, email_id=None, field=None):
    if not email_id:
        raise Refused("Which e-mail? email_id is missing.")
    if not field:
        raise Refused("What about the e-mail? field is missing.")
    email = known(office, email_id)
    if field not in email:
        raise Refused(f"An e-mail has no such field; it has {', '.join(COLUMNS)}.")
    return {field: email[field]}


def search_emails(office, /, query="", date_min=None, date_max=None, page=1, page_size=5):
    found = list(office.emails.rows)
    for word in query.lower().split():
        found = [row for row in found if word in row.derive(searched_text)]
    # Stable, so that of e-mails sent at the same time the older record comes first.
    found.sort(key=lambda row: row.derive(sent), reverse=True)
    # Only where there is something to compare, as in Gym: a date that cannot be read does no harm to an empty search.
    if date_min and found:
        first = moment(date_min).date()
        found = [row for row in found if row.derive(sent).date() >= first]
    if date_max and found:
        last = moment(date_max).date()
        found = [row for row in found if row.derive(sent).date() <= last]
    shown = page_of("emails", found, page, page_size)
    return shown if found else "There are no such e-mails."


def send_email(office, /, recipient=None, subject=None, body=None):
    if not recipient or not subject or not body:
        raise Refused("An e-mail needs a recipient, a subject and a body.")
    if "@" not in recipient or "." not in recipient:
        raise Refused("The recipient is not an e-mail address.")
    office.emails.add(
        **{
            "email_id": office.emails.next_key() if office.emails.rows else "1",
            "inbox/outbox": "outbox",
            "sender/recipient": recipient.lower(),
            "subject": subject,
            "sent_datetime": NOW,
            "body": body,
        }
    )
    return "Sent."


def delete_email(office, /, email_id=None):
    if not email_id:
        raise Refused("Which e-mail? email_id is missing.")
    known(office, email_id)
    office.emails.delete(email_id)
    return "The e-mail is deleted."


def forward_email(office, /, email_id=None, recipient=None):
    if not email_id or not recipient:
        raise Refused("Forwarding needs an email_id and a recipient.")
    if "@" not in recipient or "." not in recipient:
        raise Refused("The recipient is not an e-mail address.")
    email = known(office, email_id)
    send_email(office, recipient, f"FW: {email['subject']}", email["body"])
    return "The e-mail is forwarded."


def reply_email(office, /, email_id=None, body=None):
    if not email_id or not body:
        raise Refused("A reply needs an email_id and a body.")
    email = known(office, email_id)
    # One that was sent is answered to whom it was sent.
    send_email(office, email["sender/recipient"], f"RE: {email['subject']}", body)
    return "The reply is sent."


def known(office, email_id):
    email = office.emails.find(email_id)
    if email is None:
        raise Refused("There is no e-mail of that email_id.")
    return email


TOOLS = {
    "email_get_email_information_by_id": get_email_information_by_id,
    "email_search_emails": search_emails,
    "email_send_email": send_email,
    "email_delete_email": delete_email,
    "email_forward_email": forward_email,
    "email_reply_email": reply_email,
}
