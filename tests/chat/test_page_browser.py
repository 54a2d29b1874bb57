"""The page as a user has it: in headless Chromium, by keyboard, on a phone, with nothing in the console; the model's turns are scripted."""

import pytest

from nemo_cascade.chat.server import application
from nemo_cascade.chat.turns import ChatError, Ended, Said, Thought
from tests.chat.scripted import ANSWER, FOREVER, Scripted, calling, serving

ATTACK = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"


@pytest.fixture
def opened(browser):
    """opened(model, tools, width) -> the page; fails where anything was said in the console."""
    with _Pages(browser) as pages:
        yield pages.open
    assert pages.said == []


class _Pages:
    def __init__(self, browser):
        self.browser, self.said, self.ending = browser, [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for end in reversed(self.ending):
            end()

    def open(self, model, tools=(), width: int = 1024, scheme: str = "light"):
        server = serving(application(model, list(tools)))
        url = server.__enter__()
        context = self.browser.new_context(viewport={"width": width, "height": 740}, color_scheme=scheme)
        self.ending += [lambda: server.__exit__(None, None, None), context.close]
        # Of a machine that others use too.
        context.set_default_timeout(120_000)
        page = context.new_page()
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.goto(url)
        page.wait_for_function("() => document.title === 'scripted'")
        return page


def ended(page, text: str = "Done") -> None:
    page.wait_for_function("text => document.getElementById('status').textContent.startsWith(text)", arg=text)


def test_enter_sends_thoughts_are_folded_and_the_conversation_goes_on(opened):
    model = Scripted(ANSWER)
    page = opened(model)
    page.keyboard.type("2 + 2?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("please")
    page.keyboard.press("Enter")
    ended(page)
    answer = page.locator("article.theirs")
    assert answer.locator(".text").inner_text() == "It is 4." and page.locator("article.mine").inner_text() == "2 + 2?\nplease"
    thought = answer.locator(".thought div")
    assert not thought.is_visible() and answer.locator("summary").inner_text() == "Thought"
    answer.locator("summary").focus()
    page.keyboard.press("Enter")
    assert thought.inner_text() == "Let me see."
    page.locator("#words").fill("and 3 + 3?")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('article.theirs .text').length === 2")
    ended(page)
    assert [message["role"] for message in model.asked[1][0]] == ["user", "assistant", "user"]
    page.click("#anew")
    assert page.locator("article").count() == 0 and page.evaluate("document.activeElement.id") == "words"


def test_what_was_set_is_asked_for(opened):
    model = Scripted(ANSWER)
    page = opened(model)
    assert page.locator("#settings").is_hidden()
    page.locator("#open").focus()
    page.keyboard.press("Enter")
    page.uncheck("#thinking")
    page.fill("#budget", "12")
    page.fill("#max_tokens", "30")
    page.fill("#temperature", "0.5")
    page.fill("#system", "Be short.")
    page.fill("#words", "hello")
    page.click("#send")
    ended(page)
    ((messages, tools, settings),) = model.asked
    assert messages[0] == {"role": "system", "content": "Be short."} and tools is None
    assert (settings.thinking, settings.budget, settings.max_tokens, settings.temperature, settings.top_p) == (False, 12, 30, 0.5, 0.95)


@pytest.mark.parametrize("how", ["key", "button"])
def test_an_answer_is_stopped_and_what_was_said_stays(opened, how):
    model = Scripted([Thought("hm"), FOREVER], ANSWER)
    page = opened(model)
    page.fill("#words", "count")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('article.theirs .text')?.textContent.includes('5 ')")
    assert page.locator("#stop").is_visible() and not page.locator("#send").is_visible()
    page.keyboard.press("Escape") if how == "key" else page.click("#stop")
    ended(page, "Stopped")
    assert model.closed == 1 and page.locator("#send").is_visible()
    page.fill("#words", "go on")
    page.keyboard.press("Enter")
    ended(page)
    said = model.asked[1][0]
    assert said[1]["content"].startswith("0 1 2 3 4 5") and said[1]["reasoning_content"] == "hm" and said[2]["content"] == "go on"


def test_a_call_is_a_card_with_its_arguments_and_its_result(opened):
    page = opened(Scripted(calling("print(6 * 7)"), ANSWER), tools=["python"])
    page.fill("#words", "6 * 7?")
    page.keyboard.press("Enter")
    ended(page)
    card = page.locator("details.call")
    assert card.locator("summary").inner_text() == "stateful_python_code_exec done"
    assert card.locator("h2").all_inner_texts() == ["code", "result"]
    assert card.locator("pre").all_inner_texts() == ["print(6 * 7)", "42"]
    assert page.locator("article.theirs .text").inner_text() == "It is 4."


def test_text_is_never_markup_and_errors_are_told(opened):
    model = Scripted([Thought(ATTACK), Said(ATTACK), Ended("length", 1, 1)], [ChatError("the conversation is too long")])
    page = opened(model)
    page.fill("#words", ATTACK)
    page.keyboard.press("Enter")
    ended(page, "Cut off")
    assert page.locator(".text").inner_text() == ATTACK and page.locator("#log img, #log script").count() == 0
    page.fill("#words", "more")
    page.keyboard.press("Enter")
    ended(page, "No answer")
    assert page.locator(".error").first.inner_text() == "the conversation is too long"
    assert page.input_value("#words") == "more", "what was not answered can be sent again"
    assert page.title() == "scripted"


def test_on_a_phone_nothing_is_cut_and_it_is_light_or_dark_as_wished(opened):
    page = opened(Scripted([*calling("x = '" + "y" * 300 + "'")], [Said("z" * 400), Ended("stop")]), tools=["python"], width=360, scheme="dark")
    page.click("#open")
    page.fill("#words", "w" * 200)
    page.click("#send")
    ended(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    beyond = "[...document.querySelectorAll('body *:not(option)')].filter(e => e.getBoundingClientRect().right > 361).length"
    assert page.evaluate(beyond) == 0
    for button in page.locator("button:visible").all():
        box = button.bounding_box()
        assert box["height"] >= 40 and box["x"] >= 0 and box["x"] + box["width"] <= 360
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) != dark
