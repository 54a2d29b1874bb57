"""How long `report/index.html` of a large run takes to write and to open.

Makes a run of six stages and ten domains (one stage rolled back, one still going) with as many kept rollouts as asked for, writes
its report and opens it from the disk in headless Chromium, a fresh process each time. Prompts and replies are the demo's. Prints
medians of
  open       until the page is loaded and has been painted
  curves     from then on until those can be seen, after going to them
  rollouts   the same of the first rollouts
  side_page  until others can be read, which stand in a script beside the page
and of what the browser did until it was open: cpu, seconds that all its processes computed, which other programs do not lengthen
as much, and of these on the page's own thread task, script, style and layout. With --compare another page, of the same run by
another version, is opened in turns with it, and their ratios are printed.

    python benchmarks/report.py --rollouts 100000 --repeats 5 [--keep FOLDER] [--compare PAGE] [--out report.json]
"""

import argparse
import json
import math
import random
import re
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import yaml
from browser import open_browser

from nemo_cascade.cascade import gate, report_page
from nemo_cascade.cascade.config import GateConfig
from nemo_cascade.cascade.manifest import DONE, RUNNING, Manifest
from nemo_cascade.data.chat import render
from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.stages.metrics import MetricsLog

SCORED = (
    *("instruction_following", "math", "mcqa", "tool_use", "structured_outputs"),
    *("preference", "preference_pairs", "long_context", "code_gen", "swe_repair"),
)
PROMPTS, PER_STEP = 300, 8
# stage -> (parent, domains trained, domain -> true change of its score, teachers, only teaches)
STAGES = {
    "sft": (None, SCORED, dict(zip(SCORED, (0.42, 0.51, 0.36, 0.55, 0.62, 0.3, 0.58, 0.44, 0.21, 0.33))), {}, False),
    "if_rl": ("sft", ["instruction_following"], {"instruction_following": 0.21, "math": -0.01}, {}, False),
    "math_rl": ("sft", ["math"], {"math": 0.24, "mcqa": 0.01}, {}, True),
    "tool_rl": ("if_rl", ["tool_use"], {"tool_use": -0.02, "math": -0.19, "mcqa": -0.06}, {}, False),
    "mopd": ("if_rl", list(SCORED[:2]), {"math": 0.19}, {"instruction_following": "if_rl", "math": "math_rl"}, False),
    "multi_domain_rl": ("mopd", ["mcqa", "tool_use"], {}, {}, False),
}
GATE = GateConfig(max_drop={domain: 0.03 for domain in SCORED}, on_failure="rollback")


def make_run(folder: Path, rollouts: int, steps: int | None = None, texts: dict[str, list] | None = None) -> Manifest:
    """A run directory with `rollouts` kept rollouts, 8 a step of five stages, or all of them in `steps` steps a stage.

    texts: domain -> (prompt, pieces of a reply), instead of the demo's.
    """
    sampling = [name for name in STAGES if name != "sft"]
    sampled = {domain for name in sampling for domain in STAGES[name][1]}
    draw, texts = random.Random(0), texts or {domain: conversations(domain) for domain in sorted(sampled)}
    # The last one stops after two thirds of its steps.
    steps = steps or max(1, math.ceil(rollouts / (PER_STEP * (len(sampling) - 1 / 3))))
    per_step = max(1, round(rollouts / (steps * (len(sampling) - 1 / 3))))
    manifest, levels = Manifest(folder), {}
    now = time.time() - 30_000
    for name, (parent, trained, change, teachers, side) in STAGES.items():
        record, running = manifest.add(name), name == "multi_domain_rl"
        directory = manifest.directory(name)
        directory.mkdir(parents=True)
        record.status, record.parent, record.teachers, record.teacher_only = RUNNING if running else DONE, parent, teachers, side
        record.config_hash = f"{draw.getrandbits(256):064x}"
        (directory / "config.yaml").write_text(yaml.safe_dump(config_of(name, trained, teachers, steps), sort_keys=False))
        levels[name] = {d: (levels[parent][d] if parent else 0) + change.get(d, 0) for d in SCORED}
        count = steps * 2 // 3 + 1 if running else steps
        log_of(name, directory, count, levels[parent] if parent else levels[name], levels[name], trained, teachers, draw, now)
        now += count * 4
        if name in sampling:
            write_traces(name, directory, count, per_step, levels[name], texts, trained, teachers, draw)
        if not running:
            score(record, directory, levels[name], draw)
            record.seconds, record.checkpoint = count * 3.1 + 60, f"{record.directory}/step_{count}"
            record.checkpoint_hash = f"{draw.getrandbits(256):064x}"
            if parent:
                record.gate = gate.judge(manifest, name, GATE)
    manifest.save()
    return manifest


def config_of(name: str, trained, teachers: dict, steps: int) -> dict:
    """A stage's config.yaml as far as the report reads it, and a little more to look at."""
    kind = "sft" if name == "sft" else "rl"
    return {
        "policy": {"model_name": "tiny", "precision": "float32", "max_total_sequence_length": 512},
        "sft" if kind == "sft" else "grpo": {"max_num_steps": steps, **({"adv_estimator": {"name": "opd"}} if teachers else {})},
        "data": {"train": {domain: {"data_path": f"data/{domain}/train.jsonl", "share": 1.0} for domain in trained}},
        "cascade": {
            "kind": kind,
            "gate": {"max_drop": GATE.max_drop, "on_failure": GATE.on_failure},
            "teachers": {domain: {"stage": stage, "anchor": stage == STAGES[name][0]} for domain, stage in teachers.items()},
        },
    }


def log_of(name, directory, count, before, after, trained, teachers, draw, begun) -> None:
    """metrics.jsonl of `count` steps whose rewards go from the score before to that after."""
    lines = []
    for step in range(1, count + 1):
        done = 1 - math.exp(-4 * step / count)
        values = {"train/loss": (2 - 1.4 * done if name == "sft" else 0) + draw.gauss(0, 0.02)}
        values |= {"train/lr": 1.5e-4 * min(1, step / 10), "train/grad_norm": abs(draw.gauss(0.6, 0.15))}
        parts = {"data_processing": 0.02, "policy_training": draw.gauss(0.9, 0.1)}
        if name == "sft":
            values["train/tokens"] = 16_000
        else:
            rewards = {d: min(1, max(0, before[d] + (after[d] - before[d]) * done + draw.gauss(0, 0.05))) for d in trained}
            values |= {f"train/{domain}/reward": reward for domain, reward in rewards.items()}
            values |= {"train/reward": statistics.mean(rewards.values()), "train/num_replies": 64}
            values["train/mean_gen_tokens_per_sample"] = 40 + 15 * done + draw.gauss(0, 2)
            values |= {"train/truncation_rate": max(0, draw.gauss(0.04, 0.02)), "train/informative_groups": 0.6 - 0.3 * done}
            values |= {"train/approx_entropy": 0.9 - 0.5 * done + draw.gauss(0, 0.02), "train/is_oob_ratio": 0.0}
            values |= {"train/token_mult_prob_error": 1 + abs(draw.gauss(0, 1e-6)), "train/sampling_importance_ratio": 1.0}
            if teachers:
                values["train/teacher_student_logprob_gap_mean"] = -0.4 * (1 - done) - 0.02 + draw.gauss(0, 0.01)
                parts["teacher_logprob_inference"] = draw.gauss(0.4, 0.04)
            parts |= {"generation": draw.gauss(1.5, 0.2) + 0.3 * done, "reward_calculation": draw.gauss(0.2, 0.05)}
        parts["total_step_time"] = sum(parts.values())
        values |= {f"timing/train/{part}": value for part, value in parts.items()}
        if step % 50 == 1 and step > 1:
            values["timing/train/checkpointing"] = 2.4
        lines.append(json.dumps({"step": step, "time": begun + 4 * step, **values}))
    (directory / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert len(MetricsLog(directory / "metrics.jsonl").read()) == count


def score(record, directory, level: dict, draw) -> None:
    """Scores by prompt whose luck stays with the prompt, as in runs."""
    scores = {}
    for domain in SCORED:
        luck = random.Random(domain)
        per_prompt = [float(0.7 * luck.random() + 0.3 * draw.random() < 0.15 + 0.7 * level[domain]) for _ in range(PROMPTS)]
        scores[domain] = {"mean": statistics.mean(per_prompt), "n": PROMPTS, "per_prompt": per_prompt, "prompts": domain}
    (directory / "validation.json").write_text(json.dumps(scores))
    record.scores = {domain: {"mean": entry["mean"], "n": entry["n"]} for domain, entry in scores.items()}


def conversations(domain: str) -> list[tuple[str, list[str]]]:
    """(prompt, pieces of the reply) of demonstrations."""
    tokenizer, made = load_tokenizer("tiny"), []
    for row in DOMAINS[domain].rows(40, "train"):
        shown = DOMAINS[domain].demonstration(row)
        whole = render(tokenizer, shown["messages"], shown.get("tools"))
        start = whole.rindex("<|im_start|>assistant\n") + len("<|im_start|>assistant\n")
        made.append((whole[:start], re.findall(r"<[^<>\s]+>|\s*[^<\s]+|\s+|<", whole[start:].rstrip())))
    return made


def write_traces(name, directory, steps, per_step, level, texts, trained, teachers, draw) -> None:
    """traces/step_N.jsonl: replies that earned something and others."""
    (directory / "traces").mkdir()
    for step in range(1, steps + 1):
        lines = []
        for sample in range(per_step):
            domain = trained[sample % len(trained)]
            prompt, pieces = draw.choice(texts[domain])
            reward = float(draw.random() < level[domain])
            cut = not reward and draw.random() < 0.2
            pieces = pieces[: len(pieces) // 2] if cut else pieces
            line = {
                **{"step": step, "domain": domain, "prompt_id": "ab" * 32, "sample": sample, "reward": reward},
                "advantage": None if teachers else round((reward - level[domain]) * 1.6, 4),
                **{"trained": True, "length": len(pieces), "finish_reason": "length" if cut else "stop"},
                **{"row": {"expected_answer": "7"}, "verdict": {"extracted_answer": None}},
                **{"prompt": prompt, "pieces": pieces},
                "logprobs": [round(-draw.expovariate(2), 3) for _ in pieces],
            }
            if teachers:
                line["gaps"] = [round(draw.gauss(-0.05, 0.5) * (draw.random() < 0.3), 3) for _ in pieces]
            lines.append(json.dumps(line) + "\n")
        (directory / "traces" / f"step_{step}.jsonl").write_text("".join(lines))


def opening(page_file: Path) -> dict[str, float]:
    """Seconds by what the module names, of one opening in a browser of its own."""
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        of_thread = page.context.new_cdp_session(page)
        of_thread.send("Performance.enable")
        before, started = computed(), time.perf_counter()
        page.goto(page_file.resolve().as_uri(), wait_until="load")
        page.evaluate("new Promise(painted => requestAnimationFrame(() => requestAnimationFrame(painted)))")
        seconds = {"open": time.perf_counter() - started, "cpu": computed() - before}
        metrics = {metric["name"]: metric["value"] for metric in of_thread.send("Performance.getMetrics")["metrics"]}
        parts = {"task": "TaskDuration", "script": "ScriptDuration", "style": "RecalcStyleDuration", "layout": "LayoutDuration"}
        seconds |= {name: metrics[metric] for name, metric in parts.items()}
        for name, section, drawn in (("curves", "curves", "#panels svg"), ("rollouts", "rollouts", "#replies article")):
            started = time.perf_counter()
            page.evaluate("id => document.getElementById(id).scrollIntoView()", section)
            page.wait_for_selector(drawn)
            seconds[name] = time.perf_counter() - started
        started = time.perf_counter()
        page.select_option("[name=order]", "-reward")
        page.select_option("[name=stage]", label=list(STAGES)[-1])
        page.wait_for_function("document.querySelector('#replies header')?.textContent.includes('multi_domain_rl')")
        return seconds | {"side_page": time.perf_counter() - started}


def computed() -> float:
    """Seconds of processor time of all processes below this one, but playwright's driver."""
    processes = [p for p in psutil.Process().children(recursive=True) if "chrom" in p.name()]
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="make the run in this folder, unless it is there, and leave it")
    parser.add_argument("--compare", type=Path, help="another version's page of the same run (--keep)")
    parser.add_argument("--out", type=Path, help="JSON")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = settings.keep or Path(scratch) / "run"
        if not (folder / "cascade_manifest.json").exists():
            make_run(folder, settings.rollouts)
        started = time.perf_counter()
        page = report_page.write(folder)
        wrote = time.perf_counter() - started
        pages = [page, *([settings.compare] if settings.compare else [])]
        times = [[opening(each) for each in pages] for _ in range(settings.repeats)]
        medians = [{name: statistics.median(turn[n][name] for turn in times) for name in times[0][n]} for n in range(len(pages))]
        kept = sum(len(path.read_text().splitlines()) for path in folder.glob("*/traces/*.jsonl"))
        result = {"rollouts": kept, "write_s": round(wrote, 2)}
        for kind, each, median in zip(("", "compared_"), pages, medians):
            side = list((each.parent / "rollouts").glob("*.js"))
            result |= {f"{kind}html_mb": round(each.stat().st_size / 1e6, 2), f"{kind}side_pages": len(side)}
            result |= {f"{kind}{name}_s": round(seconds, 3) for name, seconds in median.items()}
        if settings.compare:
            # Of pairs that were opened one after the other, so that what else the machine did is in both.
            ratios = {name: [turn[1][name] / turn[0][name] for turn in times if turn[0][name]] for name in times[0][0]}
            result |= {f"compared/new {name}": round(statistics.median(of), 2) for name, of in ratios.items() if of}
    for key, value in result.items():
        print(f"{key:>22}  {value}")
    if settings.out:
        settings.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
