"""The tools as a prompt offers them, in the form of the Responses API. Names and parameters are Gym's, the words are ours."""

from nemo_cascade.environments.workplace_assistant import customers, emails, events, tasks, visits


def _tool(name: str, says: str, required: str = "", /, **parameters: str) -> dict:
    """A definition; parameters are texts but for page and page_size."""
    properties = {
        parameter: {"type": "integer" if parameter in ("page", "page_size") else "string", "description": meaning}
        for parameter, meaning in parameters.items()
    }
    schema = {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}
    return {"type": "function", "name": name, "description": says, "parameters": schema, "strict": False}


def _one_of(values) -> str:
    return "one of " + ", ".join(values)


_PAGES = {"page": "which page of the results, from 1", "page_size": "results a page, 5 unless given"}
_DAYS = {"time_min": "first day, YYYY-MM-DD", "time_max": "last day, YYYY-MM-DD"}

DEFINITIONS = [
    _tool(
        "company_directory_find_email_address",
        "Looks up the addresses of colleagues.",
        name="a name or part of one; upper and lower case are alike",
    ),
    _tool(
        "email_get_email_information_by_id",
        "Reads one field of an e-mail.",
        "email_id field",
        email_id="the e-mail's ID",
        field=_one_of(emails.COLUMNS),
    ),
    _tool(
        "email_search_emails",
        "Finds e-mails that have every word of the query in their subject, body or address, latest first.",
        query="words to look for",
        date_min="sent on this day or later, YYYY-MM-DD",
        date_max="sent on this day or earlier, YYYY-MM-DD",
        **_PAGES,
    ),
    _tool(
        "email_send_email",
        "Sends a new e-mail.",
        "recipient subject body",
        recipient="the address it goes to",
        subject="its subject line",
        body="its text",
    ),
    _tool("email_delete_email", "Deletes an e-mail.", "email_id", email_id="the e-mail's ID"),
    _tool(
        "email_forward_email",
        "Forwards an e-mail to somebody else.",
        "email_id recipient",
        email_id="the e-mail's ID",
        recipient="the address it goes to",
    ),
    _tool(
        "email_reply_email",
        "Answers an e-mail.",
        "email_id body",
        email_id="the ID of the e-mail that is answered",
        body="the text of the answer",
    ),
    _tool(
        "calendar_get_event_information_by_id",
        "Reads one field of a calendar event.",
        "event_id field",
        event_id="the event's ID, 8 digits",
        field=_one_of(events.COLUMNS),
    ),
    _tool(
        "calendar_search_events",
        "Finds events by name or participant, the last to start first.",
        query="part of the event's name or of the participant's address",
        time_min="starts at this time or later, YYYY-MM-DD HH:MM:SS",
        time_max="starts at this time or earlier, YYYY-MM-DD HH:MM:SS",
        **_PAGES,
    ),
    _tool(
        "calendar_create_event",
        "Puts an event into the calendar and returns its ID.",
        "event_name participant_email event_start duration",
        event_name="what it is called",
        participant_email="address of who takes part",
        event_start="when it starts, YYYY-MM-DD HH:MM:SS",
        duration="how many minutes it takes",
    ),
    _tool("calendar_delete_event", "Takes an event out of the calendar.", "event_id", event_id="the event's ID, 8 digits"),
    _tool(
        "calendar_update_event",
        "Changes one field of an event.",
        "event_id field new_value",
        event_id="the event's ID, 8 digits",
        field=_one_of(events.COLUMNS[1:]),
        new_value="what the field shall be",
    ),
    _tool(
        "analytics_get_visitor_information_by_id",
        "Lists the visits of one visitor to the web site.",
        "visitor_id",
        visitor_id="the visitor's ID",
    ),
    _tool(
        "analytics_create_plot",
        "Plots one figure of the web site over a range of days and returns the plot's path.",
        "time_min time_max value_to_plot plot_type",
        **_DAYS,
        value_to_plot=_one_of(visits.VALUES),
        plot_type=_one_of(visits.PLOTS),
    ),
    _tool("analytics_total_visits_count", "Counts the visits of each day.", **_DAYS),
    _tool("analytics_engaged_users_count", "Counts the engaged users of each day.", **_DAYS),
    _tool(
        "analytics_traffic_source_count",
        "Counts the visits of each day that came from one source.",
        **_DAYS,
        traffic_source=_one_of(visits.SOURCES) + "; all of them unless given",
    ),
    _tool("analytics_get_average_session_duration", "Averages the seconds that visits took, for each day.", **_DAYS),
    _tool(
        "project_management_get_task_information_by_id",
        "Reads one field of a task.",
        "task_id field",
        task_id="the task's ID, 8 digits",
        field=_one_of(tasks.COLUMNS),
    ),
    _tool(
        "project_management_search_tasks",
        "Finds the tasks that fit everything given.",
        task_name="part of the task's name",
        assigned_to_email="whole address of who has it",
        list_name="the list it is on",
        due_date="the day it is due, YYYY-MM-DD",
        board="the board it is on",
    ),
    _tool(
        "project_management_create_task",
        "Creates a task and returns its ID.",
        "task_name assigned_to_email list_name due_date board",
        task_name="what it is called",
        assigned_to_email="address of who gets it",
        list_name=_one_of(tasks.LISTS),
        due_date="the day it is due, YYYY-MM-DD",
        board=_one_of(tasks.BOARDS),
    ),
    _tool("project_management_delete_task", "Deletes a task.", "task_id", task_id="the task's ID, 8 digits"),
    _tool(
        "project_management_update_task",
        "Changes one field of a task.",
        "task_id field new_value",
        task_id="the task's ID, 8 digits",
        field=_one_of(tasks.COLUMNS[1:]),
        new_value="what the field shall be",
    ),
    _tool(
        "customer_relationship_manager_search_customers",
        "Finds the customers that fit everything given.",
        customer_name="part of the customer's name",
        customer_email="part of the customer's address",
        product_interest="the product the customer is interested in",
        status="how far the sale is",
        assigned_to_email="address of the colleague in charge",
        last_contact_date_min="last contact on this day or later, YYYY-MM-DD",
        last_contact_date_max="last contact before this day, YYYY-MM-DD",
        follow_up_by_min="follow-up due on this day or later, YYYY-MM-DD",
        follow_up_by_max="follow-up due before this day, YYYY-MM-DD",
        **_PAGES,
    ),
    _tool(
        "customer_relationship_manager_update_customer",
        "Changes one field of a customer's record.",
        "customer_id field new_value",
        customer_id="the customer's ID",
        field=_one_of(customers.COLUMNS[1:]),
        new_value="what the field shall be",
    ),
    _tool(
        "customer_relationship_manager_add_customer",
        "Adds a customer and returns the new ID.",
        "customer_name assigned_to_email status",
        customer_name="the customer's name",
        assigned_to_email="address of the colleague in charge",
        status=_one_of(customers.STATUSES),
        customer_email="the customer's address",
        customer_phone="the customer's telephone number",
        last_contact_date="day of the last contact, YYYY-MM-DD",
        product_interest=_one_of(customers.PRODUCTS),
        notes="anything worth knowing",
        follow_up_by="day of the next contact, YYYY-MM-DD",
    ),
    _tool(
        "customer_relationship_manager_delete_customer",
        "Deletes a customer's record.",
        "customer_id",
        customer_id="the customer's ID",
    ),
]
