"""The page as a user has it: opened from the disk in headless Chromium, filtered, leafed through, with nothing in the console."""

import json
import sys
from pathlib import Path

import pytest

from nemo_cascade.cascade import report_page
from nemo_cascade.cascade.report_page import rollouts

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import report as made  # noqa: E402 - benchmarks/report.py makes runs
from browser import NoBrowser, open_browser  # noqa: E402

from test_report_page import ATTACK, PROMPT, REPLY  # noqa: E402


@pytest.fixture(scope="module")
def browser():
    try:
        with open_browser() as opened:
            yield opened
    except NoBrowser as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    """A run of 12 steps whose first math reply is hostile, most of whose rollouts stand beside the page."""
    folder = tmp_path_factory.mktemp("made") / "run"
    made.make_run(folder, 450, steps=12, texts={domain: [(PROMPT, REPLY)] for domain in made.SCORED})
    trace = folder / "03-math_rl" / "traces" / "step_1.jsonl"
    first, *others = trace.read_text().splitlines()
    values = {"prompt": ATTACK, "pieces": [ATTACK], "logprobs": [-9.0], "reward": 7.5, "row": {ATTACK: ATTACK}}
    trace.write_text("\n".join([json.dumps({**json.loads(first), **values}), *others]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "INLINE_CHARACTERS", 60_000)
        return report_page.write(folder)


@pytest.fixture
def page(browser, page_file):
    """The page, opened; fails where anything was said in the console or asked of a network."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    opened, said = context.new_page(), []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url))
    opened.goto(page_file.as_uri())
    opened.wait_for_selector("#replies article")
    yield opened
    assert opened.title() == "run – cascade report", "a model's text ran as a script"
    context.close()
    assert said == []


def heads(page) -> list[str]:
    return page.locator("#replies article > header").all_inner_texts()


def settle(page, text: str) -> None:
    """Waits until the line between the arrows says so."""
    page.wait_for_function("text => document.getElementById('range').textContent.includes(text)", arg=text)
    page.wait_for_timeout(50)
    page.wait_for_selector("#replies article")


def test_rollouts_are_filtered_by_stage_domain_step_and_reward(page):
    settle(page, "of 456")
    page.select_option("[name=stage]", label="mopd")
    settle(page, "of 96")
    page.select_option("[name=domain]", label="math")
    settle(page, "of 48")
    page.fill("[name=from]", "3")
    page.fill("[name=to]", "4")
    settle(page, "of 8")
    assert all("math" in head and ("mopd, step 3" in head or "mopd, step 4" in head) for head in heads(page))
    page.fill("[name=low]", "0.5")
    every = "[...document.querySelectorAll('#replies header')].every"
    page.wait_for_function(f"{every}(head => head.textContent.startsWith('reward 1'))")
    assert "teacher" in heads(page)[0], "what a taught reply has instead of an advantage"
    page.click("button[type=reset]")
    settle(page, "of 456")


def test_pages_can_be_leafed_through_into_the_scripts_beside_the_page(page):
    back, forward = page.locator("[data-page='-1']").first, page.locator("[data-page='1']").first
    assert back.is_disabled()
    page.select_option("[name=stage]", label="multi_domain_rl")
    settle(page, "1–10 of 72")
    for first in range(11, 72, 10):
        forward.click()
        settle(page, f"{first}–")
    assert forward.is_disabled() and "multi_domain_rl, step 9" in heads(page)[-1]
    back.click()
    settle(page, "61–70 of 72")
    assert page.evaluate("document.querySelectorAll('head script[src]').length") >= 1


def test_the_highest_reward_comes_first_where_it_is_asked_for_and_its_hostile_text_is_only_text(page):
    page.select_option("[name=order]", "reward")
    page.wait_for_function("document.querySelector('#replies header')?.textContent.startsWith('reward 7.5')")
    reply = page.locator("#replies article").first
    assert reply.locator(".answer").inner_text() == ATTACK
    for summary in reply.locator("summary").all():
        summary.click()
    assert reply.locator("details .text").first.inner_text().strip().endswith(ATTACK)
    assert page.evaluate("document.querySelectorAll('#replies img, #replies script').length") == 0


def test_a_thought_is_folded_away_from_the_reply(page):
    page.select_option("[name=stage]", label="mopd")
    page.select_option("[name=cut]", "0")
    page.wait_for_function("document.querySelector('#replies header')?.textContent.includes('mopd')")
    reply = page.locator("#replies article").first
    assert not reply.locator(".thought").is_visible() and reply.locator(".answer").inner_text() == "It is 3<|im_end|>"
    reply.locator("summary", has_text="Thought").click()
    assert "three" in reply.locator(".thought").inner_text()
    assert reply.locator("summary", has_text="Prompt").inner_text() == "Prompt: 1 + 2 ?"


def test_a_step_of_a_curve_leads_to_its_rollouts_also_by_keyboard(page):
    page.select_option("#curve-stage", "if_rl")
    assert page.locator("#panels figcaption").first.inner_text().startswith("Reward")
    page.locator("#panels svg").first.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    settle(page, "of 8")
    assert all("if_rl, step 11" in head for head in heads(page))


def test_every_stage_has_curves_and_a_config_that_its_name_opens(page):
    for stage in page.locator("#curve-stage option").all_inner_texts():
        page.select_option("#curve-stage", stage)
        assert page.locator("#panels figure.stacked").count() == 1 and "NaN" not in page.locator("#panels").inner_html()
    page.click(".pipeline a:has-text('tool_rl')")
    page.wait_for_selector("#config-tool_rl pre", state="visible")


def test_the_page_fits_a_phone_and_goes_dark(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "only tables may scroll sideways"
    page.click("#theme")
    assert page.evaluate(ground) != light


def test_pages_of_an_older_report_are_said_to_be_missing(browser, page_file, tmp_path):
    alone = tmp_path / "index.html"
    alone.write_text(page_file.read_text())
    page = browser.new_page()
    page.goto(alone.as_uri())
    page.select_option("[name=stage]", label="multi_domain_rl")
    page.wait_for_selector("#replies .problem")
    assert "cannot be loaded" in page.locator("#replies .problem").inner_text()
    page.close()
