"""Workplace assistant: replies are judged by the state they leave, sessions are private, no reply breaks either."""

import copy
import json
import random

import pytest
from hypothesis import given, settings, strategies as st

from nemo_cascade.data.chat import render_tool_call
from nemo_cascade.data.rows import DataError, environment_of
from nemo_cascade.environments import get, response_of
from nemo_cascade.environments.workplace_assistant import DEFINITIONS, EXAMPLES, MAX_CALLS, MAX_STEPS, problem, session, verify
from nemo_cascade.environments.workplace_assistant.data import FILES, GENERATED, ROW_KEY, VARIABLE, databases, write
from nemo_cascade.environments.workplace_assistant.generated import COUNTS
from nemo_cascade.environments.workplace_assistant.office import MAX_TEXT, TOOLS, Office

ROW, NOTHING = EXAMPLES[0][0], EXAMPLES[-1][0]
(SEND,) = ROW["ground_truth"]
DATA = databases(GENERATED)
TASK, EVENT, CUSTOMER, EMAIL = DATA.tasks[0], DATA.events[0], DATA.customers[0], DATA.emails[0]


def call(name, /, **arguments):
    return {"name": name, "arguments": arguments}


def items(*calls):
    """A response whose calls the model server read, as an agent loop hands it over."""
    made = [{"type": "function_call", "name": c["name"], "arguments": json.dumps(c["arguments"])} for c in calls]
    return {"output": [*made, {"type": "message", "content": [{"type": "output_text", "text": "Done."}]}]}


def expecting(*calls, **more):
    return ROW | {"ground_truth": [{**c, "arguments": json.dumps(c["arguments"])} for c in calls]} | more


def said(text):
    return json.loads(text)["output"]


@pytest.mark.parametrize("row, answer, earned", EXAMPLES)
def test_known_replies_earn_what_they_should(row, answer, earned):
    assert problem(row) is None
    assert verify(row, response_of(f"thought</think>{answer}"))["reward"] == earned
    assert verify(row, response_of(answer))["reward"] == 0.0, "the thought never ends"


def test_it_is_registered_under_its_name():
    assert get(environment_of({"ground_truth": []})).verify is verify


def test_calls_are_judged_alike_as_items_and_as_text():
    right = call(SEND["name"], **json.loads(SEND["arguments"]))
    for made in (right, call("email_search_emails", query="lunch"), call("email_send_email")):
        text = response_of(f"</think>{render_tool_call(made)}")
        assert verify(ROW, items(made)) == verify(ROW, text)
    assert verify(ROW, items(right))["reward"] == 1.0


def test_text_does_not_count_beside_calls_that_were_read():
    right = call(SEND["name"], **json.loads(SEND["arguments"]))
    response = items(right)
    response["output"][-1]["content"][0]["text"] = render_tool_call(right)
    assert verify(ROW, response)["reward"] == 1.0


def test_what_each_call_says_is_told_in_order():
    wrong = call("email_send_email", recipient="Ines", subject="Lunch", body="At noon?")
    results = verify(ROW, items(call("company_directory_find_email_address", name="ines"), wrong, call("nothing")))["results"]
    assert [said(text) for text in results] == [
        ["ines.bergqvist@fernhill.example"],
        "The recipient is not an e-mail address.",
        "Error: there is no tool 'nothing'",
    ]


def test_an_answer_without_end_or_of_too_many_calls_earns_nothing_even_where_there_is_nothing_to_do():
    lookup = call("email_search_emails")
    assert verify(NOTHING, items(*[lookup] * MAX_CALLS))["reward"] == 1.0
    assert verify(NOTHING, items(*[lookup] * (MAX_CALLS + 1)))["reward"] == 0.0
    assert verify(NOTHING, response_of(f"</think>{'x' * 3_000_000}"))["reward"] == 0.0
    assert verify(NOTHING, {"output": [{"type": "reasoning", "summary": []}]})["reward"] == 0.0


CASES = [
    call("project_management_update_task", task_id=TASK["task_id"], field="task_name", new_value="New Name"),
    call("calendar_update_event", event_id=EVENT["event_id"], field="event_name", new_value="New Name"),
    call("customer_relationship_manager_update_customer", customer_id=CUSTOMER["customer_id"], field="notes", new_value="New"),
    call("email_reply_email", email_id=EMAIL["email_id"], body="Fine"),
    call("analytics_create_plot", time_min="2023-11-01A", time_max="2023-11-02", value_to_plot="total_visits", plot_type="bar"),
]


@pytest.mark.parametrize("made", CASES, ids=lambda made: made["name"])
def test_upper_and_lower_case_are_alike_where_gym_has_them_alike(made):
    *_, (key, value) = ((k, v) for k, v in made["arguments"].items() if v in ("New Name", "New", "Fine", "2023-11-01A"))
    louder = call(made["name"], **made["arguments"] | {key: value.upper()})
    quieter = call(made["name"], **made["arguments"] | {key: value.lower()})
    other = call(made["name"], **made["arguments"] | {key: value + "s"})
    assert [verify(expecting(made), items(c))["reward"] for c in (made, louder, quieter, other)] == [1.0, 1.0, 1.0, 0.0]


def test_the_status_of_a_customer_keeps_its_case():
    add = call("customer_relationship_manager_add_customer", customer_name="A", assigned_to_email="b@c.example", status="Lead")
    lower = call(add["name"], **add["arguments"] | {"status": "lead"})
    assert verify(expecting(add), items(add))["reward"] == 1.0 and verify(expecting(add), items(lower))["reward"] == 0.0


def test_a_reply_and_a_forward_are_the_e_mails_that_they_send():
    reply = call("email_reply_email", email_id=EMAIL["email_id"], body="Fine")
    sent = call("email_send_email", recipient=EMAIL["sender/recipient"], subject=f"RE: {EMAIL['subject']}", body="Fine")
    forward = call("email_forward_email", email_id=EMAIL["email_id"], recipient="a@b.example")
    passed = call("email_send_email", recipient="A@b.example", subject=f"FW: {EMAIL['subject']}", body=EMAIL["body"])
    assert verify(expecting(reply), items(sent))["reward"] == verify(expecting(forward), items(passed))["reward"] == 1.0


def test_a_change_that_is_undone_is_none():
    there = call("project_management_update_task", task_id=TASK["task_id"], field="board", new_value="Front end")
    back = call("project_management_update_task", task_id=TASK["task_id"], field="board", new_value=TASK["board"])
    assert verify(NOTHING, items(there))["reward"] == float(TASK["board"] == "Front end")
    assert verify(NOTHING, items(there, back))["reward"] == 1.0


def test_deleting_and_creating_in_either_order_leaves_equal_records():
    delete, create = call("email_delete_email", email_id=EMAIL["email_id"]), call(SEND["name"], **json.loads(SEND["arguments"]))
    assert verify(expecting(delete, create), items(create, delete))["reward"] == 1.0


def test_an_empty_cell_is_found_by_no_search_and_breaks_none():
    working = session(ROW)
    key = said(
        working.call(
            "customer_relationship_manager_add_customer", dict(customer_name="Zoe", assigned_to_email="a@b.example", status="Won")
        )
    )
    assert key == str(int(max(row["customer_id"] for row in DATA.customers)) + 1)
    found = said(working.call("customer_relationship_manager_search_customers", {"customer_name": "zoe"}))
    assert found["customers"][0]["customer_phone"] is None and found["pagination"]["total_customers"] == 1
    for parameter in ("customer_email", "product_interest", "last_contact_date_min", "follow_up_by_max"):
        value = "2099" if parameter.endswith("max") else "." if "_m" not in parameter else "1999"
        listed = said(working.call("customer_relationship_manager_search_customers", {parameter: value, "page_size": 1000}))
        assert len(listed["customers"]) == len(DATA.customers)


def test_pages():
    working = session(ROW)

    def page(**arguments):
        found = said(working.call("email_search_emails", arguments))
        return found if isinstance(found, str) else ([email["email_id"] for email in found["emails"]], found["pagination"])

    by_date = [row["email_id"] for row in sorted(DATA.emails, key=lambda row: row["sent_datetime"], reverse=True)]
    assert page()[0] == by_date[:5] and page(page=2)[0] == by_date[5:10] and page(page_size=7)[0] == by_date[:7]
    assert page(page=99, page_size=200) == (by_date[400:], {"total_emails": 500, "page": 3, "page_size": 200, "total_pages": 3})
    assert page(page=-3)[0] == by_date[:5] and "at least 1" in page(page_size=0) and page(page="1").startswith("Error")


def test_a_session_is_private_counts_null_as_absent_and_offers_the_rows_tools():
    one, other = session(ROW), session(ROW)
    assert one.max_steps == MAX_STEPS == 6 and one.tools == DEFINITIONS
    assert said(one.call("email_delete_email", {"email_id": EMAIL["email_id"]})) == "The e-mail is deleted."
    asked = {"email_id": EMAIL["email_id"], "field": "subject"}
    assert said(other.call("email_get_email_information_by_id", json.dumps(asked))) == {"subject": EMAIL["subject"]}
    assert "no e-mail" in said(one.call("email_get_email_information_by_id", asked))
    assert len(said(other.call("email_search_emails", {"query": None, "page": None}))["emails"]) == 5
    assert session(ROW | {"responses_create_params": {"tools": DEFINITIONS[:3]}}).tools == DEFINITIONS[:3]


def test_a_session_ends_after_so_many_calls():
    working = session(ROW)
    answers = [working.call("email_send_email", json.loads(SEND["arguments"])) for _ in range(MAX_CALLS + 2)]
    assert "session ends" in answers[-1] and len(working.office.emails.rows) == len(DATA.emails) + MAX_CALLS


def test_the_data_never_change():
    before = copy.deepcopy([list(DATA.emails), list(DATA.tasks), list(DATA.events), list(DATA.customers)])
    working = session(ROW)
    for made in CASES:
        working.call(made["name"], made["arguments"])
    for name, key in (
        ("email", EMAIL),
        ("calendar", EVENT),
        ("project_management", TASK),
        ("customer_relationship_manager", CUSTOMER),
    ):
        (tool,) = [tool for tool in TOOLS if tool.startswith(f"{name}_delete")]
        assert "deleted" in working.call(tool, dict([next(iter(key.items()))]))
    assert [list(DATA.emails), list(DATA.tasks), list(DATA.events), list(DATA.customers)] == before


def test_every_tool_is_defined_and_takes_what_its_definition_says():
    assert [tool["name"] for tool in DEFINITIONS] == list(TOOLS) and len(TOOLS) == 27
    for tool in DEFINITIONS:
        function = TOOLS[tool["name"]]
        office, *parameters = function.__code__.co_varnames[: function.__code__.co_argcount]
        assert office == "office" and set(parameters) == set(tool["parameters"]["properties"])
        assert set(tool["parameters"]["required"]) <= set(parameters)


# ------------------------------------------------------------------------------------------------- hostile calls

HOSTILE = [
    ("email_send_email", "[" * 100_000),
    ("email_send_email", "not json"),
    ("email_send_email", '{"recipient": NaN}'),
    ("email_send_email", '{"recipient": ' + "1" * 5000 + "}"),
    ("email_send_email", "[]"),
    ("email_send_email", None),
    ("email_send_email", {"office": 1}),
    ("email_send_email", {"recipient": "a@b.c", "subject": ["x"], "body": {"y": 1}}),
    ("email_send_email", {"recipient": "a@b.c", "subject": "x", "body": "y" * (MAX_TEXT + 1)}),
    ("email_search_emails", {"query": 5}),
    ("email_search_emails", {"date_min": "soon"}),
    ("email_search_emails", {"page_size": "many"}),
    ("calendar_search_events", {"query": "("}),
    ("calendar_search_events", {"query": "(a+)+$"}),
    ("calendar_search_events", {"query": "(a|a)(a|a)(a|a)"}),
    ("calendar_search_events", {"query": ".*.*.*x"}),
    ("calendar_search_events", {"query": "a|" * 200}),
    ("company_directory_find_email_address", {"name": None}),
    ("__class__", {}),
    (None, {}),
    (["email_send_email"], {}),
]


@pytest.mark.parametrize("name, arguments", HOSTILE, ids=[f"{name} {str(arguments)[:30]}" for name, arguments in HOSTILE])
def test_what_cannot_be_called_is_told_and_does_nothing(name, arguments):
    office, fresh = Office(DATA), Office(DATA)
    answer, done = office.answer(name, arguments)
    assert said(answer).startswith("Error: ") and len(answer) < 1000 and not done and office.same(fresh)
    response = {"output": [{"type": "function_call", "name": name, "arguments": arguments}, SEND | {"type": "function_call"}]}
    assert verify(ROW, response)["reward"] == 1.0, "Gym leaves out what it cannot call, too"


def test_lone_surrogates_come_back_as_text_that_can_be_encoded():
    working = session(ROW)
    assert said(working.call("email_send_email", {"recipient": "a@b.c", "subject": "\ud800", "body": "x"})) == "Sent."
    found = working.call("email_search_emails", {"date_min": "2023-11-30", "query": "a@b.c"})
    assert found.encode() and said(found)["emails"][0]["subject"] == "?"


PIECES = [
    "<tool_call>\n",
    "<function=email_delete_email>\n",
    "<parameter=email_id>\n",
    EMAIL["email_id"],
    "\n</parameter>\n",
    "</function>\n</tool_call>",
]
PIECES += ["</think>", "[" * 999, "\x00", "\ud800", "<tool_call>", '{"name": "email_send_email"}', "9^{9^{9}}"]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=25).map("".join))
def test_no_text_raises_or_earns_what_a_right_answer_would_not(text):
    assert verify(ROW, response_of(f"</think>{text}"))["reward"] == 0.0
    assert verify(NOTHING, response_of(f"</think>{text}"))["reward"] in (0.0, 1.0)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.text(max_size=2), max_size=2)
VALUES |= st.sampled_from(
    [EMAIL["email_id"], EVENT["event_id"], "2023-12-01 09:00:00", "a@b.c", "body", "duration", "30", ".", "(", "a*b"]
)
MADE = st.sampled_from(DEFINITIONS).flatmap(
    lambda tool: st.fixed_dictionaries({}, optional={name: VALUES for name in [*tool["parameters"]["properties"], "more"]}).map(
        lambda arguments: call(tool["name"], **arguments)
    )
)


@settings(max_examples=300)
@given(st.lists(MADE, max_size=6))
def test_no_call_raises(calls):
    working, office = session(ROW), Office(DATA)
    for made in calls:
        assert set(json.loads(working.call(made["name"], made["arguments"]))) == {"output"}
        assert office.answer(made["name"], json.dumps(made["arguments"]))[0]
    assert verify(ROW, items(*calls))["reward"] == 0.0


@pytest.mark.parametrize(
    "piece",
    ["<tool_call>\n<function=a>\n", "<tool_call>\n<function=a>\n<parameter=b>\n", "[", "</tool_call>", "\n</parameter>\n"],
)
def test_ten_megabytes_of_anything_are_read_or_left_in_a_moment(piece):
    for size in (10_000_000, 1_900_000):
        assert verify(ROW, response_of("</think>" + piece * (size // len(piece))))["reward"] == 0.0


# ---------------------------------------------------------------------------------------------------------- data


def test_the_generated_data_are_of_the_size_of_gyms_and_say_whom_they_mean():
    assert {name: len(getattr(DATA, name)) for name in FILES} == COUNTS
    assert len({address.split(".")[0] for address in DATA.directory}) == len(DATA.directory) == 20
    assert len({row["customer_name"] for row in DATA.customers}) == len(DATA.customers)
    for rows, unique in ((DATA.emails, "sent_datetime"), (DATA.events, "event_start")):
        assert len({row[unique] for row in rows}) == len(rows)


def test_a_folder_of_the_data_is_read_as_what_was_written(tmp_path):
    write(tmp_path)
    read = databases(str(tmp_path))
    assert read.directory == DATA.directory and all(getattr(read, name) == getattr(DATA, name) for name in FILES)
    assert read is databases(str(tmp_path))


def test_the_row_or_else_the_environment_says_which_data_are_meant(tmp_path, monkeypatch):
    write(tmp_path)
    file = tmp_path / FILES["emails"][0]
    file.write_text(file.read_text(encoding="utf-8").replace(EMAIL["subject"], "Other"), encoding="utf-8")
    silent = {key: value for key, value in ROW.items() if key != ROW_KEY}
    asked = {"email_id": EMAIL["email_id"], "field": "subject"}

    def subject(row):
        return said(session(row).call("email_get_email_information_by_id", asked))["subject"]

    monkeypatch.delenv(VARIABLE, raising=False)
    assert subject(silent) == EMAIL["subject"] and f"set {VARIABLE}" in problem(silent)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert subject(silent) == "Other" and subject(ROW) == EMAIL["subject"] and problem(silent) is None
    assert subject(ROW | {ROW_KEY: str(tmp_path)}) == "Other"


def test_a_folder_that_is_none_is_told(tmp_path):
    assert "email_addresses.csv: no such file" in problem(ROW | {ROW_KEY: str(tmp_path)})
    with pytest.raises(DataError, match=f"{VARIABLE} name a folder"):
        session(ROW | {ROW_KEY: str(tmp_path / "none")})
    write(tmp_path)
    file = tmp_path / FILES["tasks"][0]
    text = file.read_text(encoding="utf-8")
    for broken, complaint in (
        (text.replace("board\n", "wall\n", 1), "no column board"),
        (text + "43\n", "fewer fields"),
        (text.split("\n")[0], "no records"),
    ):
        file.write_text(broken, encoding="utf-8")
        with pytest.raises(DataError, match=f"project_tasks.csv: .*{complaint}"):
            databases(str(tmp_path))


LOOKUP = {"name": "email_search_emails", "arguments": "{}"}


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"ground_truth": None}, "no ground_truth"),
        ({"ground_truth": "[]"}, "no ground_truth"),
        ({"ground_truth": [{"name": "email_send_email"}]}, "no ground_truth"),
        ({"ground_truth": [SEND] * (MAX_CALLS + 1)}, "at most 128"),
        ({"ground_truth": [LOOKUP]}, "change nothing"),
        ({"ground_truth": [SEND | {"arguments": "{"}]}, "fails, email_send_email"),
        (
            {"ground_truth": [{"name": "email_delete_email", "arguments": '{"email_id": "00000057"}'}]},
            f"are generated its data ({ROW_KEY}",
        ),
        ({"responses_create_params": {}}, "offers no tool; it must offer some of the 27"),
        ({"responses_create_params": {"tools": [{"type": "function", "name": "remove"}]}}, "offers 'remove'"),
    ],
)
def test_a_row_that_cannot_be_verified_is_told(change, complaint):
    assert complaint in problem(ROW | change)


def test_equal_replies_are_judged_equally_however_often_they_are():
    rng = random.Random(0)
    made = [call(SEND["name"], **json.loads(SEND["arguments"])), *CASES]
    for _ in range(20):
        calls = rng.sample(made, 3)
        assert verify(expecting(*calls), items(*calls)) == verify(expecting(*calls), items(*calls))
        assert verify(expecting(*calls), items(*calls))["reward"] == 1.0
