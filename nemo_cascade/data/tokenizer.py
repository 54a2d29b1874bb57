"""Tokenizers: any Hugging Face folder with the family's special tokens, and the small one that ships with the package.

The shipped `tiny` is a byte-level BPE over the demo domains' texts; `python -m nemo_cascade.data.tokenizer` trains it again, to
the same bytes. A real model brings its own tokenizer and chat template.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SHIPPED = Path(__file__).parent / "tokenizers"
# Both end a reply; config.json of the released model names only the first.
STOP_IDS = (2, 11)
# Ids that the protocol, the engine and the verifiers rely on.
REQUIRED = {
    "<unk>": 0,
    "<s>": 1,
    "</s>": 2,
    "<|im_start|>": 10,
    "<|im_end|>": 11,
    "<think>": 12,
    "</think>": 13,
    "<tool_call>": 14,
    "</tool_call>": 15,
    "<tool_response>": 16,
    "</tool_response>": 17,
}
# Nemotron's ids 0-17 in order; 3-9 are Mistral's and unused here.
SPECIAL = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] "
    "<|im_start|> <|im_end|> <think> </think> <tool_call> </tool_call> <tool_response> </tool_response>"
).split()


# What transformers 4 and 5 call a tokenizer that is its tokenizer.json and nothing else.
PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")


def find_tokenizer(name: str) -> Path:
    """The folder of a shipped tokenizer or the named folder; raises ValueError when it is neither."""
    folder = SHIPPED / name if (SHIPPED / name).is_dir() else Path(name)
    if not folder.is_dir():
        shipped = ", ".join(sorted(path.name for path in SHIPPED.iterdir() if path.is_dir()))
        raise ValueError(f"{name} is neither a folder nor shipped with the package ({shipped}); name a folder with a tokenizer.json")
    if not any(folder.glob("tokenizer*")):
        raise ValueError(f"{folder}: no tokenizer in this folder; name one with a tokenizer.json")
    return folder


def load_tokenizer(name: str):
    """A shipped tokenizer by name ("tiny"), or a Hugging Face folder. Nothing is downloaded.

    Raises ValueError when there is none or it cannot be opened, and naming the folder and the token when a special token is missing or has another id.
    """
    folder = find_tokenizer(name)
    try:
        tokenizer = _class_of(folder).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged file may raise anything in there
        raise ValueError(f"{folder}: its tokenizer cannot be opened: {type(error).__name__}: {error}") from error
    for token, number in REQUIRED.items():
        found = tokenizer.convert_tokens_to_ids(token)
        if found != number:
            raise ValueError(f"{folder}: special token {token} has id {found}, but the chat protocol needs {number}")
    if not tokenizer.chat_template:
        raise ValueError(f"{folder}: no chat template; put chat_template.jinja beside tokenizer.json")
    return tokenizer


def _class_of(folder: Path) -> type:
    """What opens a folder's tokenizer: the plain class where the folder names that, as the family's do.

    AutoTokenizer would find the same, but imports a second's worth of models first, in every process.
    """
    try:
        named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("tokenizer_class")
    except (OSError, ValueError, AttributeError):
        named = None
    if named in PLAIN and (folder / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def fingerprint(tokenizer) -> dict[str, str]:
    """{"tokenizer", "template": sha256 of what makes tokens of a text, and of what makes a text of messages}.

    What a tokenizer was last used with (truncation, padding) and which program wrote its file do not count.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    counting = {key: parts.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "model", "decoder")}
    texts = {"tokenizer": json.dumps(counting, sort_keys=True), "template": str(tokenizer.chat_template)}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def train_tokenizer(texts: Iterable[str], vocab_size: int = 832, phrases: Sequence[str] = ()):
    """Byte-level BPE with single digits and the special tokens at ids 0-17, as a PreTrainedTokenizerFast.

    Each of `phrases` is one token, the last of vocab_size. The same texts give the same tokenizer.
    """
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    # A digit keeps the space before it, as a word does: lists of numbers are half as long.
    digits = pre_tokenizers.Split(Regex(r" ?\p{N}"), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(phrases),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=262144,
    )


def tool_phrases(tokenizer) -> list[str]:
    """What the chat template says about tools, between their names and types: else most of a prompt of the demo."""
    from nemo_cascade.data.chat import render

    blank = "\0"
    parameters = {"type": "object", "properties": {blank: {"type": blank}}, "required": [blank]}
    tools = [{"type": "function", "function": {"name": blank, "parameters": parameters}}] * 2
    text = render(tokenizer, [{"role": "user", "content": ""}], tools)
    said = text[text.index("\n") + 1 : text.index("<|im_end|>")].replace(json.dumps(blank)[1:-1], blank)
    return list(dict.fromkeys(said.split(blank)))


def train_shipped(rows_per_domain: int = 1500) -> None:
    """Trains `tiny` on the demo domains' prompts and demonstrations and writes it beside its chat template."""
    from nemo_cascade.data.chat import render
    from nemo_cascade.data.demo import DOMAINS, LEVELS

    folder = SHIPPED / "tiny"
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    shipped = load_tokenizer("tiny")
    special = re.compile("|".join(map(re.escape, SPECIAL)))
    texts = []
    for domain in DOMAINS.values():
        for level in LEVELS:
            for row in domain.rows(rows_per_domain, "train", seed=0, level=level):
                demonstration = domain.demonstration(row)
                # As rendered, because the chat protocol's own words stand in every conversation.
                whole = render(shipped, demonstration["messages"], demonstration.get("tools"))
                texts += special.split(whole)
    tokenizer = train_tokenizer(texts, phrases=tool_phrases(shipped))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    train_shipped()
