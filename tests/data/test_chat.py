"""Conversations as training samples: what is trained on, where turns are cut, and that sampling could have produced it."""

import json
import shutil

import pytest

from nemo_cascade.data import chat
from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.data.rows import messages_of, tools_of
from nemo_cascade.data.tokenizer import SPECIAL, find_tokenizer, fingerprint, load_tokenizer, tool_phrases, train_tokenizer

TOKENIZER = load_tokenizer("tiny")


def user(text):
    return {"role": "user", "content": text}


def assistant(text, thought=None):
    return {"role": "assistant", "content": text} | ({} if thought is None else {"reasoning_content": thought})


def split(sample):
    """(text, trained) for each run of equal mask."""
    runs = []
    for token, trained in zip(sample.tokens, sample.loss_mask, strict=True):
        if not runs or runs[-1][1] != trained:
            runs.append(([], trained))
        runs[-1][0].append(token)
    return [(TOKENIZER.decode(tokens, skip_special_tokens=False), trained) for tokens, trained in runs]


HEAD = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


def test_only_what_the_model_writes_is_trained_on():
    (sample,) = chat.conversation_to_samples(TOKENIZER, {"messages": [user("a"), assistant("yes", "hm")]})
    assert split(sample) == [(HEAD + "<think>\n", 0), ("hm\n</think>\nyes<|im_end|>", 1)]


def test_an_answer_without_a_thought_is_trained_behind_the_closed_pair():
    (sample,) = chat.conversation_to_samples(TOKENIZER, {"messages": [user("a"), assistant("yes")]})
    assert split(sample) == [(HEAD + "<think></think>", 0), ("yes<|im_end|>", 1)]


def test_every_user_turn_is_a_sample_with_history_as_inference_sees_it():
    row = {"messages": [user("a"), assistant("yes", "hm"), user("b"), assistant("no", "so")]}
    first, second = chat.conversation_to_samples(TOKENIZER, row)
    assert split(first) == [(HEAD + "<think>\n", 0), ("hm\n</think>\nyes<|im_end|>", 1)]
    past = HEAD + "<think></think>\nyes<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert split(second) == [(past, 0), ("so\n</think>\nno<|im_end|>", 1)]


def test_all_replies_of_a_tool_loop_are_trained_on_and_results_are_not():
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    messages = [
        user("a"),
        {**assistant("", "hm"), "tool_calls": [call]},
        {"role": "tool", "content": "7"},
        assistant("seven", "so"),
    ]
    (sample,) = chat.conversation_to_samples(TOKENIZER, {"messages": messages})
    written = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>\n<|im_end|>"
    given = "\n<|im_start|>user\n<tool_response>\n7\n</tool_response>\n<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert split(sample) == [
        (HEAD + "<think>\n", 0),
        ("hm\n</think>\n" + written, 1),
        (given, 0),
        ("so\n</think>\nseven<|im_end|>", 1),
    ]


@pytest.mark.parametrize("domain", DOMAINS)
def test_prompt_tokens_of_a_sample_are_those_sampling_starts_from(domain):
    for number, row in enumerate(DOMAINS[domain].rows(50, "train", level="demo")):
        demonstration = DOMAINS[domain].demonstration(row, number)
        (sample,) = chat.conversation_to_samples(TOKENIZER, demonstration)
        thinks = "reasoning_content" in demonstration["messages"][-1]
        prompt = chat.render_prompt(TOKENIZER, messages_of(row), tools_of(row), enable_thinking=thinks)
        assert sample.tokens[: len(prompt)] == prompt
        assert sample.loss_mask == [0] * len(prompt) + [1] * (len(sample.tokens) - len(prompt))


@pytest.mark.parametrize("text", ["", "\n", "\n\n", " leading", "trailing ", "été 12 🙂", "\r\n\t"])
def test_texts_of_any_bytes_come_back(text):
    assert TOKENIZER.decode(chat.encode(TOKENIZER, text)) == text


def test_special_tokens_have_nemotrons_ids():
    assert TOKENIZER.convert_tokens_to_ids(SPECIAL) == list(range(18))


def test_training_the_tokenizer_again_gives_the_same_one():
    texts = ["red blue 12", "blue green 345"] * 20
    assert train_tokenizer(texts, 320).get_vocab() == train_tokenizer(texts, 320).get_vocab()


def test_a_folder_without_the_protocols_tokens_is_refused_by_name(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"special token <s>"):
        load_tokenizer(str(tmp_path))


def test_what_the_template_says_about_tools_is_few_tokens_and_comes_back():
    name, place = "remove_at", {"type": "object", "properties": {"place": {"type": "integer"}}, "required": ["place"]}
    tools = [{"type": "function", "function": {"name": name, "parameters": place}}] * 2
    messages = [{"role": "user", "content": "red"}]
    text = chat.render(TOKENIZER, messages, tools, add_generation_prompt=True)
    tokens = chat.encode(TOKENIZER, text)
    assert TOKENIZER.decode(tokens, skip_special_tokens=False) == text and "- Give every required parameter.\n" in text
    assert len(tokens) < 50
    phrases = tool_phrases(TOKENIZER)
    assert all(len(chat.encode(TOKENIZER, phrase)) == 1 for phrase in phrases)
    # None of them can begin inside what a model writes: a reply is encoded as it is sampled.
    reply = chat.render_tool_call({"name": name, "arguments": {"place": 3}})
    assert not any(phrase in reply for phrase in phrases)


@pytest.mark.parametrize("opening", ["<tool_call>\n<function=a>\n", "<tool_call>\n<function=a>\n<parameter=b>\n", "<parameter=b>\n"])
def test_a_reply_of_tags_that_never_close_is_read_once_not_once_a_tag(opening):
    call = {"name": "f", "arguments": {"x": "1"}}
    text = chat.render_tool_call(call) + opening * 100_000
    message = chat.parse_reply(text)
    assert message["tool_calls"] == [{"name": "f", "arguments": {"x": 1}}]
    assert message.get("malformed_tool_calls", 0) == opening.count("<tool_call>") * 100_000
    assert chat.parse_tool_call(f"<tool_call>\n<function=f>\n{opening * 100_000}</function>\n</tool_call>") is None


@pytest.mark.parametrize("named", ["TokenizersBackend", "PreTrainedTokenizerFast", "LlamaTokenizerFast", None])
def test_a_folder_opens_as_transformers_opens_it(tmp_path, named):
    from transformers import AutoTokenizer

    shutil.copytree(find_tokenizer("tiny"), tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"tokenizer_class": named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    ours, theirs = load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>user\nAvoid the letter e. 12 + 30 = ?<|im_end|>\n<think>\n</think>"
    assert type(ours) is type(theirs) and ours.special_tokens_map == theirs.special_tokens_map
    assert ours(text)["input_ids"] == theirs(text)["input_ids"] and fingerprint(ours) == fingerprint(theirs)


@pytest.mark.parametrize("config", ["[]", "{", '{"tokenizer_class": "TokenizersBackend", "added_tokens_decoder": 3}'])
def test_a_damaged_tokenizer_is_told_by_its_folder(tmp_path, config):
    shutil.copytree(find_tokenizer("tiny"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(ValueError, match=f"{tmp_path}: its tokenizer cannot be opened: "):
        load_tokenizer(str(tmp_path))
