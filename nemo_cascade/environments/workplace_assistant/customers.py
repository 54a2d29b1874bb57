"""The customer relationship manager."""

from nemo_cascade.environments.workplace_assistant.search import Refused, containing, page_of

COLUMNS = (
    "customer_id",
    "assigned_to_email",
    "customer_name",
    "customer_email",
    "customer_phone",
    "last_contact_date",
    "product_interest",
    "status",
    "follow_up_by",
    "notes",
)
KEY_DIGITS = 8
STATUSES = ("Qualified", "Won", "Lost", "Lead", "Proposal")
PRODUCTS = ("Software", "Hardware", "Services", "Consulting", "Training")
ADDRESSES = ("customer_email", "assigned_to_email")


def search_customers(
    office,
    /,
    customer_name=None,
    customer_email=None,
    product_interest=None,
    status=None,
    assigned_to_email=None,
    last_contact_date_min=None,
    last_contact_date_max=None,
    follow_up_by_min=None,
    follow_up_by_max=None,
    page=1,
    page_size=5,
):
    contained = {
        "customer_name": customer_name,
        "customer_email": customer_email,
        "product_interest": product_interest,
        "status": status,
        "assigned_to_email": assigned_to_email,
    }
    between = {
        "last_contact_date": (last_contact_date_min, last_contact_date_max),
        "follow_up_by": (follow_up_by_min, follow_up_by_max),
    }
    if not any(contained.values()) and not any(map(any, between.values())):
        raise Refused("Say what to search for: every parameter is missing.")
    rows = list(office.customers.rows)
    for field, pattern in contained.items():
        if pattern:
            rows = containing(rows, pattern, field)
    for field, (low, high) in between.items():
        # Compared as texts, so that a day without its hour lies before every hour of the day.
        if low:
            rows = [row for row in rows if isinstance(row[field], str) and row[field] >= low]
        if high:
            rows = [row for row in rows if isinstance(row[field], str) and row[field] <= high]
    shown = page_of("customers", rows, page, page_size)
    return shown if rows else "There are no such customers."


def update_customer(office, /, customer_id=None, field=None, new_value=None):
    if not customer_id or not field or not new_value:
        raise Refused("An update needs a customer_id, a field and a new_value.")
    if field == "status" and new_value not in STATUSES:
        raise Refused(f"status must be one of {', '.join(STATUSES)}.")
    if field == "product_interest" and new_value not in PRODUCTS:
        raise Refused(f"product_interest must be one of {', '.join(PRODUCTS)}.")
    if field in ADDRESSES:
        new_value = new_value.lower()
    check_known(office, customer_id)
    if field not in COLUMNS:
        raise Refused(f"That field cannot be set; these can: {', '.join(COLUMNS[1:])}.")
    office.customers.update(customer_id, field, new_value)
    return "The customer is updated."


def add_customer(
    office,
    /,
    customer_name=None,
    assigned_to_email=None,
    status=None,
    customer_email=None,
    customer_phone=None,
    last_contact_date=None,
    product_interest=None,
    notes="",
    follow_up_by=None,
):
    if not all((customer_name, assigned_to_email, status)):
        raise Refused("A customer needs a customer_name, an assigned_to_email and a status.")
    assignee = assigned_to_email.lower()
    key = office.customers.next_key().zfill(KEY_DIGITS)
    office.customers.add(
        customer_id=key,
        assigned_to_email=assignee,
        customer_name=customer_name,
        customer_email=customer_email.lower() if customer_email else customer_email,
        customer_phone=customer_phone,
        last_contact_date=last_contact_date,
        product_interest=product_interest,
        status=status,
        follow_up_by=follow_up_by,
        notes=notes,
    )
    return key


def delete_customer(office, /, customer_id=None):
    if not customer_id:
        raise Refused("Which customer? customer_id is missing.")
    check_known(office, customer_id)
    office.customers.delete(customer_id)
    return "The customer is deleted."


def check_known(office, customer_id) -> None:
    if office.customers.find(customer_id) is None:
        raise Refused("There is no customer of that customer_id.")


TOOLS = {
    "customer_relationship_manager_search_customers": search_customers,
    "customer_relationship_manager_update_customer": update_customer,
    "customer_relationship_manager_add_customer": add_customer,
    "customer_relationship_manager_delete_customer": delete_customer,
}
