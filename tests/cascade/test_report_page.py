"""What the page of a run says, and that it says it of runs in every state; what it looks like is test_report_page_browser's."""

import json
import re
import sys
from html import unescape
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nemo_cascade.cascade import report_page
from nemo_cascade.cascade.cli import app
from nemo_cascade.cascade.manifest import RUNNING, Manifest
from nemo_cascade.cascade.report_page import curves, graph, rollouts, views
from nemo_cascade.cascade.report_page.run_files import json_lines, read_run

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import report as made  # noqa: E402 - benchmarks/report.py makes runs

ATTACK = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><!--"
PROMPT = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n1 + 2 ?<|im_end|>\n<|im_start|>assistant\n"
REPLY = ["<think>", "\n", "three", "\n", "</think>", "\n", "It is 3", "<|im_end|>"]


@pytest.fixture
def run(tmp_path) -> Path:
    """Six stages: tool_rl rolled back, math_rl only teaches, multi_domain_rl in the middle; 12 steps, 8 replies each."""
    made.make_run(tmp_path / "run", 450, steps=12, texts={domain: [(PROMPT, REPLY)] for domain in made.SCORED})
    return tmp_path / "run"


def words(page: str) -> str:
    """What a reader sees, without the scripts' data."""
    page = re.sub(r"(?s)<(script|style).*?</\1>", "", page)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page)))


def test_the_page_is_one_file_that_asks_nothing_of_a_network(run):
    page = report_page.write(run).read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:|#)""", page.replace("{src: `rollouts/page_", "")), "no link leaves the page"
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page
    assert [path.name for path in (run / "report").iterdir()] == ["index.html"]


def test_the_page_has_every_stage_with_state_start_teachers_and_hashes(run):
    page, record = report_page.write(run).read_text(), Manifest.load(run).stages["mopd"]
    text = words(page)
    assert "tool_rl rolled back" in text and "only teaches : RL on math, from sft" in text and "step 9 of 12" in text
    assert "from if_rl, taught by if_rl, math_rl" in text
    assert record.checkpoint_hash in text and record.config_hash in text and "model_name: tiny" in text


def test_whatever_else_the_manifest_has_of_a_stage_is_there_too(run):
    stage = read_run(run).stages["mopd"]
    stage.record.handover = {"reloaded": {"largest difference": 0.0}, "notes": []}
    assert views.facts(stage) == {
        "config_hash": stage.record.config_hash,
        "checkpoint_hash": stage.record.checkpoint_hash,
        "handover.reloaded.largest difference": "0.0",
    }


def test_scores_have_their_change_and_its_interval(run):
    scores = views.score_matrix(read_run(run))
    assert list(scores) == ["sft", "if_rl", "math_rl", "tool_rl", "mopd"]
    lost = scores["tool_rl"]["math"]
    assert lost.change[1] < lost.change[0] < lost.change[2] < 0 and lost.sure and not lost.trained
    assert scores["sft"]["math"].change is None and scores["math_rl"]["math"].trained
    (run / "04-tool_rl" / "validation.json").unlink()
    before, after = (Manifest.load(run).stages[name].scores["math"]["mean"] for name in ("if_rl", "tool_rl"))
    assert views.score_matrix(read_run(run))["tool_rl"]["math"].change == [after - before, None, None]


def test_a_verdict_has_its_reason(run):
    text = words(report_page.write(run).read_text())
    rows = {(row["domain"], row["failed"]) for row in views.verdict_rows(read_run(run).stages["tool_rl"])}
    assert ("math", True) in rows and ("instruction_following", False) in rows
    mean = Manifest.load(run).stages["tool_rl"].gate["differences"]["math"][0]
    assert re.search(rf"math {re.escape(f'{mean:+.3f}')} \[-.*?\] , may lose at most 0.03", text)
    assert "Later stages start from if_rl instead" in text and "tool_rl rolled back , 3 passed" in text


def test_a_passed_verdict_names_the_rule_that_was_nearest_to_failing_and_where_noise_excused_it(run):
    verdict = views.verdicts(read_run(run))["if_rl"]
    assert verdict.nearest["mean"] == min(row["mean"] for row in verdict.rows) and not verdict.nearest["failed"]
    chance = f"{verdict.nearest['chance']:.2g}"
    beyond = verdict.nearest["mean"] < -0.03
    assert (f"noise makes as much with a chance of {chance}" in words(report_page.write(run).read_text())) == beyond
    for row in verdict.rows:
        marks = row["picture"]
        assert 0 <= marks["low"] <= marks["mean"] <= marks["high"] <= 100 and marks["limit"] < marks["zero"]


def test_teachers_are_shown_with_what_the_student_made_up(run):
    rows = {row["domain"]: row for row in views.teacher_rows(read_run(run))}
    scores = {name: record.scores for name, record in Manifest.load(run).stages.items()}
    taught, before, after = (scores[name]["math"]["mean"] for name in ("math_rl", "if_rl", "mopd"))
    assert rows["math"]["closed"] == pytest.approx((after - before) / (taught - before)) and not rows["math"]["anchor"]
    assert rows["instruction_following"]["anchor"] and rows["instruction_following"]["closed"] is None


def test_what_leaves_the_main_line_has_a_lane_of_its_own(run):
    drawn = graph.draw(Manifest.load(run))
    x = {name: place[0] for name, place in drawn.nodes.items()}
    assert x["sft"] == x["if_rl"] == x["mopd"] == x["multi_domain_rl"] < x["math_rl"] < x["tool_rl"]
    assert [edge.kind for edge in drawn.edges].count("teacher") == 1, "the anchor is where mopd starts, and joined already"
    assert len({place[1] for place in drawn.nodes.values()}) == 6


def test_curves_of_known_metrics_are_named_and_any_other_has_its_own():
    values = {"time": 0.0, "train/teacher_student_logprob_gap_mean": -0.5, "train/math/reward": 1.0}
    log = [{"step": step, "train/novel": step, **values} for step in (1, 2)]
    panels = {panel["title"]: panel["series"] for panel in curves.panels(log)}
    assert panels["Reverse KL to the teachers"][0]["points"] == [[1, 0.5], [2, 0.5]]
    assert panels["novel"][0]["points"] == [[1, 1.0], [2, 2.0]] and panels["Reward"][0]["name"] == "math"


def test_a_domain_has_one_colour_in_all_panels():
    values = {"train/reward": 0.5, "train/math/reward": 1.0, "train/mcqa/reward": 0.0, "train/mcqa/reverse_kl": 0.1}
    panels = {panel["title"]: panel["series"] for panel in curves.panels([{"step": 1, "train/filtered_reward": 0.4, **values}])}
    colours = {series["name"]: series["colour"] for series in panels["Reward"]}
    assert len(set(colours.values())) == 4 and panels["Reverse KL by domain"][0]["colour"] == colours["mcqa"]


def test_long_curves_are_means_over_stretches_and_values_that_are_none_are_left_out():
    log = [{"step": s, "train/loss": None if s % 10 == 0 else float(s % 2)} for s in range(1, 10_001)]
    points = curves.points(log, "train/loss")
    assert len(points) <= curves.MOST_POINTS and points[-1][0] == 10_000
    assert all(0.4 < value < 0.7 for _, value in points)
    assert curves.points([{"step": 1, "train/loss": None}], "train/loss") == []


def test_time_is_shown_by_parts_and_as_score_gained(run):
    stage = read_run(run).stages["if_rl"]
    spent = views.spent(stage, views.score_matrix(read_run(run))["if_rl"])
    assert spent["replies"] == 12 * 64 and spent["steps"] == 12 and spent["gain"] > 0.1
    assert sum(spent["parts"].values()) == pytest.approx(spent["in_steps"])
    assert list(spent["parts"]) == ["generation", "reward_calculation", "policy_training", "data_processing"]


def embedded(page: str, name: str):
    """The JSON of a script element, as a browser reads it."""
    return json.loads(re.search(rf'(?s)<script type="application/json" id="{name}">(.*?)</script>', page)[1])


def index_of(page: str) -> dict[str, list]:
    """The columns of the page's index, unpacked."""
    columns = embedded(page, "index")["columns"]
    return {name: unpacked(column) for name, column in columns.items()}


def unpacked(column: dict) -> list:
    width, digits = column["width"], [rollouts.DIGITS.index(digit) for digit in column["codes"]]
    numbers = [sum(d << 6 * n for n, d in enumerate(digits[at : at + width])) for at in range(0, len(digits), width)]
    return [column["values"][number] for number in numbers]


@pytest.mark.parametrize("count, width", [(1, 1), (64, 1), (65, 2), (5000, 3)])
def test_a_packed_column_has_every_entry_and_its_values_in_order(count, width):
    column = [*(float(n * 7919 % count) for n in range(count)), None, 0.0]
    made = rollouts.packed(column[:-2] if count == 64 else column)
    assert unpacked(made) == (column[:-2] if count == 64 else column) and made["width"] == width
    values = [value for value in made["values"] if value is not None]
    assert values == sorted(values) and None not in made["values"][:-1]


def test_numbers_that_json_has_not_are_null_and_the_page_can_still_be_read(run):
    trace = run / "03-math_rl" / "traces" / "step_1.jsonl"
    first, *others = trace.read_text().splitlines()
    broken = json.loads(first) | {"reward": float("nan"), "logprobs": [float("-inf")], "length": "long"}
    trace.write_text("\n".join([json.dumps(broken), *others]) + "\n")
    page = report_page.write(run).read_text()
    place = index_of(page)["stage"].index("math_rl")
    assert index_of(page)["reward"][place] is None and index_of(page)["length"][place] is None
    replies = [reply for number in range(page.count('id="page-')) for reply in embedded(page, f"page-{number}")]
    assert replies[place]["logprobs"] == [None] and "NaN" not in page.replace("isNaN", "")


def test_no_text_of_a_model_row_or_config_can_become_markup(run):
    trace = run / "03-math_rl" / "traces" / "step_1.jsonl"
    line = json.loads(trace.read_text().splitlines()[0])
    hostile = {**line, "pieces": [ATTACK], "logprobs": [-1.0], "prompt": ATTACK, "domain": ATTACK, "row": {ATTACK: ATTACK}}
    trace.write_text(json.dumps(hostile) + "\n")
    (run / "02-if_rl" / "config.yaml").write_text(f"# {ATTACK}\n")
    page = report_page.write(run).read_text()
    assert "<img" not in page and page.count("</script>") == len(re.findall("<script", page)) and "<!--" not in page
    replies = [reply for number in range(page.count('id="page-')) for reply in embedded(page, f"page-{number}")]
    assert ATTACK in [reply["pieces"][0] for reply in replies], "it is there as it was written"


def test_a_run_that_was_killed_while_it_wrote_has_a_page(run):
    for name in ("metrics.jsonl", "traces/step_9.jsonl"):
        path = run / "06-multi_domain_rl" / name
        path.write_text(path.read_text()[:-30])
    page = report_page.write(run).read_text()
    assert "step 8 of 12" in words(page), "the step whose line was cut is not counted"
    index = index_of(page)
    assert len(index["stage"]) == (4 * 12 + 9) * 8 - 1
    assert "unreadable" not in words(page), "a last line without its end is no damage"


def test_damage_in_the_middle_is_said_and_the_rest_is_shown(run):
    path = run / "02-if_rl" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3][:20], "\x00", *lines[5:]]) + "\n")
    (run / "02-if_rl" / "config.yaml").write_text("a: [")
    (run / "02-if_rl" / "traces" / "step_2.jsonl").write_bytes(b"\xff\xfe{\n{}\n")
    text = words(report_page.write(run).read_text())
    assert "metrics.jsonl: 2 unreadable lines are left out" in text and "not YAML" in text
    assert "1 kept rollouts could not be read" in text


@pytest.mark.parametrize("line, read", [('{"a": 1}\n', 1), ('{"a": 1}', 1), ('{"a": ', 0), ("", 0), ("[1]\n", 0)])
def test_lines_are_read_as_far_as_they_are_whole(tmp_path, line, read):
    (tmp_path / "x.jsonl").write_text(line)
    assert len(json_lines(tmp_path / "x.jsonl")[0]) == read


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.add("sft").status = RUNNING
    manifest.add("if_rl")
    manifest.save()
    text = words(report_page.write(tmp_path).read_text())
    assert "step 0 of ?" in text and "if_rl not begun" in text and "No rollouts were kept yet" in text


def test_many_rollouts_stand_in_scripts_beside_the_page_and_old_ones_go(run, monkeypatch):
    monkeypatch.setattr(rollouts, "INLINE_CHARACTERS", 60_000)
    page = report_page.write(run)
    side = sorted(path.name for path in (run / "report" / "rollouts").iterdir())
    text = page.read_text()
    inline, pages = text.count('id="page-'), len(embedded(text, "index")["firsts"])
    assert len(side) + inline == pages and len(side) >= 2 and inline >= 1
    assert {int(re.search(r"\d+", name)[0]) for name in side} == set(range(inline, pages))
    beside = (run / "report" / "rollouts" / f"page_{inline}.js").read_text()
    assert beside.startswith(f"reportPage({inline},[") and beside.endswith("])\n")
    report_page.write(run, most_rollouts=100)
    assert len(list((run / "report" / "rollouts").glob("*.js"))) < len(side)


def test_of_too_many_rollouts_whole_steps_are_taken(run):
    page = report_page.write(run, most_rollouts=200).read_text()
    index = index_of(page)
    assert len(index["step"]) <= 200 + 5 * 8 and set(index["step"]) >= {1, 4, 12}
    assert all(index["step"].count(step) % 8 == 0 for step in set(index["step"])) and "those of every 3th step" in words(page)


def test_of_a_long_reply_both_ends_are_shown():
    count = rollouts.MOST_PIECES + 10
    cut = rollouts.clipped({"pieces": [str(n) for n in range(count)], "logprobs": [0.0] * count, "prompt": "p" * 100_000})
    assert cut["left_out"] == 10 and len(cut["pieces"]) == len(cut["logprobs"]) == rollouts.MOST_PIECES
    assert cut["pieces"][0] == "0" and cut["pieces"][-1] == str(count - 1) and len(cut["prompt"]) < 50_000


def test_the_command_writes_the_page_or_says_what_to_name(run):
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 0 and str(run / "report" / "index.html") in done.output
    refused = CliRunner().invoke(app, ["report", str(run / "report")])
    assert refused.exit_code == 2 and "name the run directory of a cascade" in refused.output
