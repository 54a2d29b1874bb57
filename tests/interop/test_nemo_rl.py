"""A stage as a config of NeMo RL: nothing of it is lost without a word, and nothing is written that NeMo RL does not know."""

import dataclasses
import json
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import CascadeConfig, StageConfig, load_config
from nemo_cascade.cascade.manifest import DONE, Manifest
from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.cascade.strict import flatten
from nemo_cascade.interop import nemo_rl, starts
from nemo_cascade.stages.config import PretrainedConfig

KEYS = [line for line in (Path(__file__).parent / "nemo_rl_keys.txt").read_text().splitlines() if not line.startswith("#")]
CONFIGS = ("full", "smoke")


@cache
def config(name: str, *overrides: str) -> CascadeConfig:
    return load_config(compose_config(name, list(overrides)), planning=True)


def exported(cascade: CascadeConfig, stage: str) -> nemo_rl.Exported:
    found = starts.Starts("/hf", "/hf", teachers={domain: f"/{t.name}" for domain, t in cascade.stages[stage].teachers.items()})
    return nemo_rl.export(cascade, stage, found, Path("/out"), "/opt/nemo-rl")


def everything() -> list[tuple[str, str]]:
    return [(name, stage) for name in CONFIGS for stage in config(name).stages]


def known(key: str) -> bool:
    return any(key == other or (other.endswith(".*") and (key + ".").startswith(other[:-1])) for other in KEYS)


def covers(place: str, key: str) -> bool:
    return key == place or key.startswith(place if place.endswith((".", "_")) else f"{place}.")


def test_every_key_of_a_stage_is_said_or_made_into_others_or_ours_or_told():
    keys = {key for name, stage in everything() for key in nemo_rl.leaves(config(name).stages[stage])}
    keys |= set(nemo_rl.leaves(StageConfig()))
    for key in sorted(keys):
        places = [key in nemo_rl.SAID, *(any(covers(p, key) for p in lot) for lot in (nemo_rl.MADE, nemo_rl.OURS, nemo_rl.UNSAID))]
        assert sum(places) == 1, f"{key}: {places}"


def test_every_key_that_is_written_is_one_of_nemo_rls():
    for name, stage in everything():
        document = exported(config(name), stage).document
        wrong = [key for key in flatten(document) if not known(key)]
        entries = [*document["data"]["train"], *(document["data"]["validation"] or [])]
        wrong += [key for entry in entries for key in entry if f"data[].{key}" not in KEYS]
        assert wrong == [], (name, stage)
        assert "???" not in str(document) and "${" not in str(document)


def opened(folder: Path, text: str, base: dict) -> dict:
    """The file as NeMo RL composes it: over the file that it names, blocks with `_override_` in place of that file's."""
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    config = OmegaConf.create(yaml.safe_load(text))
    under = OmegaConf.load(folder / Path(config.pop("defaults")).name)
    for key in list(config):
        if OmegaConf.is_dict(config[key]) and config[key].pop("_override_", False):
            under.pop(key, None)
    return OmegaConf.to_container(OmegaConf.merge(under, config), resolve=True)


@pytest.mark.parametrize("stage", ["sft", "if_rl", "mopd"])
def test_the_file_opens_over_an_exemplar_whose_blocks_have_other_shapes(stage, tmp_path):
    made = exported(config("full"), stage)
    made.document["defaults"] = str(tmp_path / "base.yaml")
    base = {
        "data": {"train": {"dataset_name": "squad"}, "validation": {"dataset_name": "squad"}, "prompt_file": "cot.txt"},
        "env": {"math": {"num_workers": 8}},
        "policy": {"optimizer": {"name": "x"}, "scheduler": [{"name": "y"}], "dtensor_cfg": {"enabled": True, "_v2": True}},
        "logger": {"wandb": {"project": "theirs"}, "wandb_enabled": True},
    }
    whole = opened(tmp_path, made.text("A stage", ["run it"]), base)
    assert whole["policy"]["optimizer"] is None and whole["policy"]["dtensor_cfg"] == {"enabled": False, "_v2": True}
    assert isinstance(whole["data"]["train"], list) and "prompt_file" not in whole["data"]
    assert whole["logger"]["wandb_enabled"] is False and whole["logger"]["wandb"] == {"project": "theirs"}
    assert "math" not in whole["env"] if stage != "sft" else whole["env"] == base["env"]


def test_a_stage_means_there_what_it_means_here():
    cascade = config("full")
    flat = flatten(exported(cascade, "if_rl").document)
    assert flat["grpo.num_prompts_per_step"] * flat["grpo.num_generations_per_prompt"] == flat["policy.train_global_batch_size"] == 2048
    # A reply that was cut earns 0 and stays.
    assert flat["grpo.reward_shaping.enabled"] and flat["grpo.reward_shaping.stop_properly_penalty_coef"] == 0.0
    assert not flat["grpo.overlong_filtering"] and flat["grpo.use_dynamic_sampling"] and not flat["grpo.async_grpo.enabled"]
    assert flat["policy.megatron_cfg.optimizer.lr"] == 3.0e-6 and flat["policy.megatron_cfg.optimizer.adam_beta2"] == 0.95
    assert flat["policy.make_sequence_length_divisible_by"] == 8, "two halves on each of four context ranks"
    masked = flatten(exported(cascade, "multi_domain_rl").document)
    assert masked["grpo.overlong_filtering"] and not masked["grpo.reward_shaping.enabled"]
    sft = flatten(exported(cascade, "sft").document)
    assert sft["policy.megatron_cfg.scheduler.lr_decay_iters"] == cascade.stages["sft"].policy.megatron_cfg.scheduler.lr_decay_iters
    assert sft["policy.megatron_cfg.moe_router_load_balancing_type"] == "seq_aux_loss"
    assert sft["policy.megatron_cfg.model_overrides.moe_aux_loss_coeff"] == 1.0e-4


def test_whether_gradients_are_added_in_products_is_said_only_where_the_config_insists():
    key = "policy.megatron_cfg.gradient_accumulation_fusion"
    assert key not in flatten(exported(config("full"), "if_rl").document) and key in KEYS
    for value in ("true", "false"):
        assert flatten(exported(config("full", f"{key}={value}"), "if_rl").document)[key] is (value == "true")


def rows_at(folder: Path, **agents: str) -> list[str]:
    """Files whose rows name these agents, and the overrides that give them to mopd."""
    overrides = []
    for domain, agent in agents.items():
        (folder / f"{domain}.jsonl").write_text(json.dumps({"agent_ref": {"name": agent}}) + "\n")
        overrides.append(f"cascade.stages.mopd.data.train.{domain}.data_path={folder}/{domain}.jsonl")
    return overrides


def test_distillation_names_a_teacher_for_every_agent_and_says_what_it_costs_there(tmp_path):
    given = rows_at(tmp_path, math="math_with_judge_simple_agent", mcqa="mcqa_simple_agent", preference="genrm_compare_simple_agent")
    made = exported(config("full", *given), "mopd")
    distillation = made.document["on_policy_distillation"]
    by_agent = distillation["teacher_model_by_agent_name"]
    assert by_agent["math_with_judge_simple_agent"] == "/sft" and by_agent["genrm_compare_simple_agent"] == "/preference_rl"
    assert distillation["strict_agent_name_match"] and distillation["non_colocated_teachers"]["enabled"]
    loss = made.document["loss_fn"]
    assert (loss["truncated_importance_sampling_type"], loss["token_level_loss"]) == ("icepop", False)
    assert not loss["force_on_policy_ratio"], "NeMo RL would have no log-probs of the student"
    # 32 nodes train, 32 sample, 3 teachers of 8 ranks each.
    assert made.document["cluster"]["num_nodes"] == 32 + 32 + 3
    assert made.document["grpo"]["async_grpo"]["enabled"] and not made.document["policy"]["generation"]["colocated"]["enabled"]
    configs = made.document["env"]["nemo_gym"]["config_paths"]
    assert "resources_servers/mcqa/configs/mcqa.yaml" in configs and "resources_servers/genrm_compare/configs/genrm_compare.yaml" in configs
    told = "\n".join(made.untold)
    for part in ("3 of them wait on 3 nodes", "cascade.judge: ", "data.train: shares", "instruction_following.jsonl is not here"):
        assert part.replace("instruction_following.jsonl", "data/instruction_following/train.jsonl") in told, part


def test_what_cannot_be_said_is_told_only_where_it_is_said_here():
    cascade = config("smoke")
    assert any(line.startswith("grpo.swe_group_threshold=0.5: ") for line in exported(cascade, "swe_rl").untold)
    assert not any("swe_group_threshold" in line for line in exported(cascade, "if_rl").untold)
    assert any(line.startswith("grpo.max_rollout_turns=") for line in exported(cascade, "swe_agentic_rl").untold)
    assert any(line.startswith("policy.train_global_batch_size=") for line in exported(cascade, "sft").untold)
    # tiny's rows are its own environments'.
    assert not any("data.on_bad_row" in line for line in exported(cascade, "sft").untold)
    skipping = dataclasses.replace(cascade.stages["sft"].data, on_bad_row="skip")
    changed = dataclasses.replace(cascade.stages["sft"], data=skipping)
    told = exported(dataclasses.replace(cascade, stages={**cascade.stages, "sft": changed}), "sft").untold
    assert any(line.startswith('data.on_bad_row="skip": ') for line in told)


def test_another_packages_estimator_is_told():
    cascade = config("smoke")
    stage = cascade.stages["if_rl"]
    grpo = dataclasses.replace(stage.grpo, adv_estimator=dataclasses.replace(stage.grpo.adv_estimator, name="gentle"))
    stages = {**cascade.stages, "if_rl": dataclasses.replace(stage, grpo=grpo)}
    told = exported(dataclasses.replace(cascade, stages=stages), "if_rl").untold
    assert any(line.startswith("grpo.adv_estimator.name=gentle: another package's") for line in told)


def test_a_checkpoint_of_the_run_is_converted_first_and_one_that_is_not_there_is_refused(tmp_path):
    cascade = dataclasses.replace(config("smoke"), run_dir=str(tmp_path))
    with pytest.raises(RunRefused) as refused:
        starts.find(cascade, "mopd")
    assert len(str(refused.value).splitlines()) == 1 + len(cascade.stages["mopd"].teachers)
    with pytest.raises(RunRefused, match="policy.model_name=tiny: NeMo RL knows a network by its Hugging Face folder only"):
        starts.find(cascade, "sft")
    assert starts.find(cascade, "sft", tmp_path / "mine").model == str(tmp_path / "mine")
    manifest = Manifest(tmp_path)
    record = manifest.add("sft")
    record.status, record.checkpoint = DONE, f"{record.directory}/step_2"
    manifest.save()
    found = starts.find(cascade, "if_rl")
    assert found.model == str(tmp_path / "nemo_rl" / "sft")
    convert, copy = found.commands
    assert convert == (
        f"python examples/convert.py --from megatron --to hf --model tiny {tmp_path}/01-sft/step_2/policy/weights {tmp_path}/nemo_rl/sft"
    )
    assert copy.startswith("cp ") and "tokenizer.json" in copy and copy.endswith(f" {tmp_path}/nemo_rl/sft")
    Path(found.model).mkdir(parents=True)
    (Path(found.model) / "config.json").write_text("{}")
    assert starts.find(cascade, "if_rl").commands == [], "it has been converted"


def test_somebody_elses_weights_are_named_as_nemo_rl_names_them(tmp_path):
    sft = config("smoke").stages["sft"]
    for form, file in (("megatron_bridge", "run_config.yaml"), ("megatron_lm", "metadata.json")):
        folder = tmp_path / form / "iter_0000005"
        folder.mkdir(parents=True)
        (folder / ".metadata").touch()
        (folder / file).touch()
        given = dataclasses.replace(sft.checkpointing, pretrained_checkpoint=PretrainedConfig(str(tmp_path / form)))
        stage = dataclasses.replace(sft, checkpointing=given)
        assert starts.of_config(stage) == ("", {"path": str(folder), "format": form})
        cascade = dataclasses.replace(config("smoke"), stages={"sft": stage}, run_dir=str(tmp_path))
        found = starts.find(cascade, "sft", tmp_path / "hf")
        assert found.model == str(tmp_path / "hf") and found.pretrained is None, "--model has the last word"


def test_the_command_writes_the_file_with_what_to_run_and_what_is_lost(tmp_path, capsys):
    from nemo_cascade.cascade import cli

    with pytest.raises(SystemExit) as ended:
        cli.export_nemo_rl("if_rll", tmp_path / "x.yaml", config_name="smoke")
    assert ended.value.code == 2 and "unknown stage if_rll; did you mean if_rl?" in capsys.readouterr().err
    out = tmp_path / "if_rl.yaml"
    cli.export_nemo_rl("if_rl", out, [f"cascade.run_dir={tmp_path}/run"], config_name="smoke", model=tmp_path / "hf")
    said, text = capsys.readouterr().out, out.read_text()
    assert f"cd /opt/nemo-rl && uv run examples/nemo_gym/run_grpo_nemo_gym.py --config {out}" in said
    back = f"nemo-cascade import-checkpoint if_rl {tmp_path}/if_rl/checkpoints/step_2 --config-name=smoke cascade.run_dir={tmp_path}/run"
    assert back in said and f"# {back}" in text
    assert "cannot be said there: policy.generation.backend=megatron" in said and "# - policy.generation.backend=megatron" in text
    assert yaml.safe_load(text)["defaults"] == "/opt/nemo-rl/examples/configs/grpo_math_1B.yaml"
    assert re.fullmatch(r"ok: .*if_rl\.yaml", said.splitlines()[-1])
