"""The page as a user has it: opened from the disk in headless Chromium, filtered, leafed through, with nothing in the console."""

import json
import sys
from pathlib import Path

import pytest

from nemo_cascade.cascade import report_page
from nemo_cascade.cascade.report_page import rollouts

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import report as made  # noqa: E402 - benchmarks/report.py makes runs

from test_report_page import ATTACK, PROMPT, REPLY  # noqa: E402


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


def opened(browser, page_file: Path, width: int = 1280):
    """(the page in a window of its own, what is said in its console or asked of a network)."""
    page, said = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="light").new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url))
    page.goto(page_file.as_uri())
    return page, said


@pytest.fixture
def page(browser, page_file):
    """The page, opened at its rollouts; fails where anything was said in the console or asked of a network."""
    page, said = opened(browser, page_file)
    assert page.locator("#replies article").count() == 0, "what is not looked at is not built"
    page.evaluate("document.getElementById('rollouts').scrollIntoView()")
    page.wait_for_selector("#replies article")
    yield page
    assert page.title() == "run – cascade report", "a model's text ran as a script"
    page.context.close()
    assert said == []


def heads(page) -> list[str]:
    """What stands over each reply: its prompt's head and its own."""
    return page.evaluate(
        "[...document.querySelectorAll('#replies .reply')].map(reply =>"
        " reply.parentElement.querySelector('header').innerText + ' ' + reply.querySelector('header').innerText)"
    )


def settle(page, text: str) -> None:
    """Waits until the line between the arrows says so."""
    page.wait_for_function("text => document.getElementById('range').textContent.includes(text)", arg=text)
    page.wait_for_timeout(50)
    page.wait_for_selector("#replies article")


def look_through(page) -> None:
    """Scrolls from the top to the end, so that all is drawn."""
    page.evaluate(
        "async () => { for (let y = 0; y < document.documentElement.scrollHeight; y += 600) {"
        " scrollTo(0, y); await new Promise(requestAnimationFrame); await new Promise(requestAnimationFrame); } }"
    )


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
    every = "[...document.querySelectorAll('#replies .reply header')].every"
    page.wait_for_function(f"{every}(head => head.textContent.startsWith('reward 1'))")
    assert "teacher" in heads(page)[0], "what a taught reply has instead of an advantage"
    page.click("button[type=reset]")
    settle(page, "of 456")


def test_replies_to_one_prompt_stand_together_with_their_tokens_coloured_by_what_the_step_did(page):
    page.select_option("[name=stage]", label="if_rl")
    settle(page, "of 96")
    first = page.locator("#replies article").first
    assert "8 replies" in first.locator("> header").inner_text() and first.locator(".reply").count() == 8
    grounds = "[...document.querySelectorAll('#replies .answer span')].map(span => span.style.background)"
    assert all("--gain" in ground or "--loss" in ground for ground in page.evaluate(grounds)), "by the reply's advantage"
    page.select_option("[name=colour]", "")
    page.wait_for_function(f"{grounds}.every(ground => ground === '')")
    page.locator("#replies .answer span").first.hover()
    assert "log-prob" in page.locator("#tip").inner_text()


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
    page.wait_for_function("document.querySelector('#replies .reply header')?.textContent.startsWith('reward 7.5')")
    reply = page.locator("#replies article").first
    assert reply.locator(".answer").first.inner_text() == ATTACK
    for summary in reply.locator("summary").all():
        summary.click()
    assert reply.locator("details .text").first.inner_text().strip().endswith(ATTACK)
    reply.locator(".answer span").first.hover()
    assert page.evaluate("document.querySelectorAll('#replies img, #replies script, #tip img').length") == 0


def test_a_thought_is_folded_away_from_the_reply(page):
    page.select_option("[name=stage]", label="mopd")
    page.select_option("[name=cut]", "0")
    page.wait_for_function("document.querySelector('#replies header')?.textContent.includes('mopd')")
    reply = page.locator("#replies .reply").first
    assert not reply.locator(".thought").is_visible() and reply.locator(".answer").inner_text() == "It is 3<|im_end|>"
    reply.locator("summary", has_text="Thought").click()
    assert "three" in reply.locator(".thought").inner_text()
    assert page.locator("#replies summary", has_text="Prompt").first.inner_text() == "Prompt: 1 + 2 ?"


def test_a_step_of_a_curve_leads_to_its_rollouts_and_back_also_by_keyboard(page):
    page.select_option("#curve-stage", "if_rl")
    page.locator("#panels figure").first.scroll_into_view_if_needed()
    assert page.locator("#panels figcaption").first.inner_text().startswith("Reward")
    page.locator("#panels svg").first.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#tip b").inner_text() == "step 11"
    page.keyboard.press("Enter")
    settle(page, "of 8")
    assert all("if_rl, step 11" in head for head in heads(page)) and not page.locator("#tip").is_visible()
    page.click("[data-step='1']")
    page.wait_for_function("document.querySelector('#replies header').textContent.includes('step 12')")
    assert page.locator("[data-step='1']").is_disabled(), "the last step"
    page.click("#at-step a")
    assert page.evaluate("document.activeElement.closest('figure').textContent.startsWith('Reward')")


def test_a_step_without_kept_rollouts_leads_to_the_nearest_and_a_stage_without_any_says_so(browser, tmp_path):
    folder = tmp_path / "run"
    made.make_run(folder, 150, steps=4, texts={domain: [(PROMPT, REPLY)] for domain in made.SCORED})
    (folder / "02-if_rl" / "traces" / "step_4.jsonl").unlink()
    for trace in (folder / "05-mopd" / "traces").iterdir():
        trace.unlink()
    page, said = opened(browser, report_page.write(folder))
    for stage, found in (("mopd", None), ("sft", None), ("if_rl", "if_rl, step 3 (of step 4 none were kept)")):
        page.select_option("#curve-stage", stage)
        page.locator("#panels figure").first.scroll_into_view_if_needed()
        assert page.locator("#curve-note").inner_text().startswith("No rollouts" if found is None else "A click")
        page.locator("#panels svg").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("#at-step").is_visible() == bool(found)
    assert page.locator("#at-step b").inner_text() == found and said == []
    page.context.close()


def test_every_stage_has_curves_whose_labels_do_not_touch_and_a_config_that_its_name_opens(page):
    touching = """() => [...document.querySelectorAll('#panels svg')].flatMap(svg => {
        const boxes = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
        const out = svg.parentElement.getBoundingClientRect();
        const touch = (A, B) => A.left < B.right && B.left < A.right && A.top + 2 < B.bottom && B.top + 2 < A.bottom;
        const cut = boxes.filter(([, A]) => A.left < out.left - 1 || A.right > out.right + 1);
        return cut.concat(boxes.flatMap(([a, A], i) => boxes.slice(i + 1).filter(([, B]) => touch(A, B)).map(([b]) => [a, b])));
    })"""
    for stage in page.locator("#curve-stage option").all_inner_texts():
        page.select_option("#curve-stage", stage)
        look_through(page)
        figures = page.locator("#panels figure").count()
        assert page.locator("#panels svg").count() == figures and page.locator("#panels figure.stacked").count() == 1
        assert "NaN" not in page.locator("#panels").inner_html() and page.evaluate(touching) == []
    page.click(".pipeline a:has-text('tool_rl')")
    page.wait_for_selector("#config-tool_rl pre", state="visible")


def test_on_a_phone_nothing_is_cut_and_every_section_can_be_gone_to(browser, page_file):
    page, said = opened(browser, page_file, width=390)
    look_through(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "only tables may scroll sideways"
    beyond = "main => [...main.querySelectorAll(':not(.wide *)')].filter(e => e.getBoundingClientRect().right > 391).length"
    assert page.locator("main").evaluate(beyond) == 0
    links = page.locator("nav a")
    assert links.count() == 8
    for link in links.all():
        box = link.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and link.evaluate("a => a.scrollWidth <= a.clientWidth + 1")
        link.click()
        place = "id => document.getElementById(id).getBoundingClientRect().top"
        assert page.evaluate(place, link.get_attribute("href")[1:]) < 844, link.inner_text()
    chips = page.locator("#pipeline .badge, #pipeline .role, .verdict summary .badge").all()
    assert len(chips) == 6 + 1 + 4
    for chip in chips:
        box = chip.bounding_box()
        assert chip.is_visible() and box["x"] + box["width"] <= 390, chip.inner_text()
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) != light and said == []
    page.context.close()


def test_ten_domains_fit_a_desktop(page):
    assert len(made.SCORED) == 10 and page.locator(".matrix thead th").count() == 11
    box = page.locator(".wide:has(.matrix)")
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth")
    cut = "[...document.querySelectorAll('.matrix td')].filter(cell => cell.scrollWidth > cell.clientWidth).length"
    assert page.evaluate(cut) == 0 and page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_verdict_is_two_clicks_from_the_top_with_domain_change_interval_and_what_followed(page):
    page.click(".glance a:has-text('tool_rl')")
    verdict = page.locator("#gate-tool_rl")
    said = verdict.locator("summary").inner_text()
    assert "rolled back" in said and "math -0." in said and "[-0." in said and "may lose at most 0.03" in said
    assert "Later stages start from if_rl instead" in said and verdict.locator("tr.failed").first.is_visible()


def test_pages_of_an_older_report_are_said_to_be_missing(browser, page_file, tmp_path):
    alone = tmp_path / "index.html"
    alone.write_text(page_file.read_text())
    page = browser.new_page()
    page.goto(alone.as_uri())
    page.select_option("[name=stage]", label="multi_domain_rl")
    page.wait_for_selector("#replies .problem")
    assert "cannot be loaded" in page.locator("#replies .problem").inner_text()
    page.close()
