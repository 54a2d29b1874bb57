"""Project management: tasks on boards."""

import re

from nemo_cascade.environments.workplace_assistant.search import Refused, containing

COLUMNS = ("task_id", "task_name", "assigned_to_email", "list_name", "due_date", "board")
KEY_DIGITS = 8
LISTS = ("Backlog", "In Progress", "In Review", "Completed")
BOARDS = ("Back end", "Front end", "Design")
_ADDRESS = re.compile(r"[\w.%+-]+@[a-z0-9.-]+\.[a-z]{2,}", re.ASCII | re.IGNORECASE)
_MAX_ADDRESS = 320


def get_task_information_by_id(office, /, task_id=None, field=None):
    if not task_id:
        raise Refused("Which task? task_id is missing.")
    if not field:
        raise Refused("What about the task? field is missing.")
    task = known(office, task_id)
    if field not in task:
        raise Refused(f"A task has no such field; it has {', '.join(COLUMNS)}.")
    return {field: task[field]}


def search_tasks(office, /, task_name=None, assigned_to_email=None, list_name=None, due_date=None, board=None):
    wanted = {"task_name": task_name, "list_name": list_name, "due_date": due_date, "board": board}
    if not assigned_to_email and not any(wanted.values()):
        raise Refused("Say what to search for: every parameter is missing.")
    rows = office.tasks.rows
    if assigned_to_email:
        if not _ADDRESS.fullmatch(assigned_to_email[:_MAX_ADDRESS]):
            raise Refused("assigned_to_email is not an e-mail address.")
        assignee = assigned_to_email.lower()
        rows = [row for row in rows if assignee == lower(row["assigned_to_email"])]
    for field, pattern in wanted.items():
        if pattern:
            rows = containing(rows, pattern, field)
    return list(rows)


def create_task(office, /, task_name=None, assigned_to_email=None, list_name=None, due_date=None, board=None):
    if not all((task_name, assigned_to_email, list_name, due_date, board)):
        raise Refused("A task needs a task_name, an assigned_to_email, a list_name, a due_date and a board.")
    assignee = assigned_to_email.lower()
    check_assignee(office, assignee)
    check_list(list_name)
    check_board(board)
    key = office.tasks.next_key().zfill(KEY_DIGITS)
    office.tasks.add(
        task_id=key, task_name=task_name, assigned_to_email=assignee, list_name=list_name, due_date=due_date, board=board
    )
    return key


def delete_task(office, /, task_id=None):
    if not task_id:
        raise Refused("Which task? task_id is missing.")
    known(office, task_id)
    office.tasks.delete(task_id)
    return "The task is deleted."


def update_task(office, /, task_id=None, field=None, new_value=None):
    if not task_id or not field or not new_value:
        raise Refused("An update needs a task_id, a field and a new_value.")
    if field == "assigned_to_email":
        new_value = new_value.lower()
        check_assignee(office, new_value)
    elif field == "board":
        check_board(new_value)
    elif field == "list_name":
        check_list(new_value)
    known(office, task_id)
    if field not in COLUMNS:
        raise Refused(f"That field cannot be set; these can: {', '.join(COLUMNS[1:])}.")
    office.tasks.update(task_id, field, new_value)
    return "The task is updated."


def check_assignee(office, address: str) -> None:
    """Only those take a task who have one."""
    if not any(address == lower(row["assigned_to_email"]) for row in office.tasks.rows):
        raise Refused("Nobody of that assigned_to_email works on tasks.")


def check_list(name) -> None:
    if name not in LISTS:
        raise Refused(f"list_name must be one of {', '.join(LISTS)}.")


def check_board(name) -> None:
    if name not in BOARDS:
        raise Refused(f"board must be one of {', '.join(BOARDS)}.")


def lower(cell):
    return cell.lower() if isinstance(cell, str) else None


def known(office, task_id):
    task = office.tasks.find(task_id)
    if task is None:
        raise Refused("There is no task of that task_id.")
    return task


TOOLS = {
    "project_management_get_task_information_by_id": get_task_information_by_id,
    "project_management_search_tasks": search_tasks,
    "project_management_create_task": create_task,
    "project_management_delete_task": delete_task,
    "project_management_update_task": update_task,
}
