"""What a user may say about a stage's loop: NeMo RL's `sft`, `grpo`, `loss_fn`, `data` and `checkpointing` blocks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_cascade.environments.endpoint import EndpointConfig


@dataclass
class DatasetConfig:
    """One JSONL file of a domain; `share` is its weight in the stage's mixture."""

    data_path: str = "???"  # a JSONL file of rows; for SFT also a folder of packs
    share: float = 1.0


@dataclass
class DataConfig:
    """`data`: files by domain. `on_bad_row`: stop (default) or skip, which counts and lists what it skipped."""

    train: dict[str, DatasetConfig] = field(default_factory=dict)  # by domain: what is trained on
    validation: dict[str, DatasetConfig] = field(default_factory=dict)  # by domain: what every stage from here on is scored on
    shuffle: bool = True  # rows in a seeded order of their own in every epoch
    on_bad_row: str = "stop"

    @property
    def packed_folder(self) -> Path | None:
        """The folder of packs that SFT trains on, where `train` names one (and nothing else, as `cascade.checks` sees to)."""
        paths = [Path(dataset.data_path) for dataset in self.train.values()]
        return next((path for path in paths if path.is_dir()), None)


@dataclass
class SFTConfig:
    """`sft`: the length of the stage in optimizer steps, and validation inside it.

    val_period: steps between validations on all that the finished stage is scored on (0: none); the last step is one of them.
    val_patience: the stage stops where so many in a row were no improvement beyond noise (0: it never does).
    """

    max_num_steps: int = 100  # optimizer steps
    val_period: int = 0
    val_patience: int = 0


@dataclass
class AdvantageEstimatorConfig:
    """`grpo.adv_estimator`: `grpo` (group-normalised reward), `opd` (teacher minus student log-prob per token) or one that another
    package brings (docs/extend/estimator.md).

    domain_shares, with opd: each domain's share of the loss, of any sum, however long its replies are; without, each token or reply
    counts as it is (loss_fn.token_level_loss), which is the paper's. full_vocabulary, with opd: the loss is the reverse KL to the
    teacher over the whole vocabulary, not its estimate from the sampled token.
    """

    name: str = "grpo"  # where advantages come from
    domain_shares: dict[str, float] = field(default_factory=dict)
    full_vocabulary: bool = False


@dataclass
class AsyncGRPOConfig:
    """`grpo.async_grpo`: a step's replies are drawn with the weights before the last update, so that an engine beside the trainer
    (policy.generation.backend=vllm_server) samples while that update is made; any other samples before it.

    max_trajectory_age_steps: by how many updates replies may be older than the weights that are trained; 1 is the only one there is.
    """

    enabled: bool = False  # off: each batch is drawn with the weights that it trains
    max_trajectory_age_steps: int = 1


@dataclass
class PartialRolloutsConfig:
    """`grpo.partial_rollouts`: a step trains on the first groups that are complete; replies that are still being written go on at the next
    step, with its weights. Our own key: NeMo RL has none for it.

    max_new_tokens_per_round: tokens that each reply writes before the complete groups are counted; a divisor of
    policy.generation.max_new_tokens. num_prompts_in_flight: prompts whose replies are written at a time.
    """

    enabled: bool = False  # off: a step waits for its longest reply
    max_new_tokens_per_round: int = 8192
    num_prompts_in_flight: int = 256


@dataclass
class GRPOConfig:
    """`grpo`: batch shape and length of an RL stage, and which rollouts it trains on. val_period and val_patience are `sft`'s.

    overlong: what happens to replies cut at the length limit: "reward_zero" (null), "mask" (left out of the loss) or "keep".
    overlong_filtering: NeMo RL's key for two of these, mask (true) or keep (false).
    use_dynamic_sampling: prompts whose replies all earn the same are replaced by further ones until the batch is full; more
    than dynamic_sampling_max_gen_batches batches for one step stop the run. swe_group_threshold: a group in which no
    reply earns more is left out of the loss (null: all are trained on). max_rollout_turns: how often the model may speak in a rollout
    of an environment with tools; 1: its calls end it. Each turn has policy.generation.max_new_tokens, all of them and what the tools
    say policy.max_total_sequence_length.
    """

    num_prompts_per_step: int = 32  # prompts a step
    num_generations_per_prompt: int = 8  # replies a prompt: the group
    max_num_steps: int = 30  # optimizer steps, one a batch
    val_period: int = 0
    val_patience: int = 0
    normalize_rewards: bool = True  # advantages are divided by their group's standard deviation
    use_leave_one_out_baseline: bool = False  # the baseline of a reply is the mean of the others
    overlong: str | None = None
    overlong_filtering: bool | None = None
    use_dynamic_sampling: bool = False
    dynamic_sampling_max_gen_batches: int = 10
    swe_group_threshold: float | None = None
    max_rollout_turns: int = 1
    async_grpo: AsyncGRPOConfig = field(default_factory=AsyncGRPOConfig)
    partial_rollouts: PartialRolloutsConfig = field(default_factory=PartialRolloutsConfig)
    adv_estimator: AdvantageEstimatorConfig = field(default_factory=AdvantageEstimatorConfig)

    @property
    def overlong_mode(self) -> str:
        """The mode of `algorithms.overlong` that the two keys say."""
        return self.overlong or {None: "reward_zero", True: "mask", False: "keep"}[self.overlong_filtering]


@dataclass
class GenRMConfig:
    """`genrm`: how a judge's comparisons become rewards, by the names of NeMo Gym's genrm_compare server.

    The values are Nemotron-Cascade 2's (section 4.5); Gym's own defaults are circular and 0. judge_max_new_tokens,
    judge_enable_thinking and judge_guided_json (an answer that cannot be read is made the likeliest one that can) are
    those of a judge that is a checkpoint of the run; an endpoint has its own.
    """

    comparison_strategy: str = "all_pairs"  # which replies of a group are compared
    group_reasoning_length_penalty_coeff: float = 0.5  # weight of the length of thoughts; shorter ones earn more
    group_answer_length_penalty_coeff: float = 0.5  # the same of answers
    reasoning_bonus: float = 0.5  # for the shortest thought, if its reply is among the best
    answer_bonus: float = 0.5  # the same of answers
    top_percentile: float = 0.2  # the share of replies that are among the best
    judge_max_new_tokens: int = 64
    judge_enable_thinking: bool = True
    judge_guided_json: bool = False


@dataclass
class NemoGymConfig:
    """`env.nemo_gym`: environments that servers of NeMo Gym verify: `servers` has the address of each, by its name.

    concurrency: requests to a server at a time from a process. timeout: seconds that an answer may take.
    """

    servers: dict[str, str] = field(default_factory=dict)
    concurrency: int = 64
    timeout: float = 600.0


@dataclass
class EnvConfig:
    """`env`: who verifies replies. num_workers: processes for it beside each rank (0: as many as its share of the cores).

    judges: by environment, the model that is asked where its verifier alone cannot decide about a reply. max_faults: the share of a
    step's replies, or of a domain's in a validation, that may be without a verdict and left out; with more the run stops.
    """

    num_workers: int = 0
    max_faults: float = 0.5
    judges: dict[str, EndpointConfig] = field(default_factory=dict)
    nemo_gym: NemoGymConfig = field(default_factory=NemoGymConfig)


@dataclass
class LossConfig:
    """`loss_fn`: the keys of NeMo RL's ClippedPGLossFn by the meaning they have there (docs/algorithms.md); `stages.loss` reads them.

    token_level_loss: mean over tokens, else over each response and then over responses. A batch is trained on once, so the ratio
    pi / pi_previous is 1 and its bounds (ratio_clip_*) hold nothing back; disable_ppo_ratio, force_on_policy_ratio, use_cispo and
    sequence_level_importance_ratios (GSPO) are other forms with the same gradient where a response has one advantage.
    use_importance_sampling_correction: weights pi_train / pi_sampling, as they are or, by truncated_importance_sampling_type, "tis"
    (clamped to min and ratio), "icepop" (dropped outside) or "seq-mask-tis" (whole replies dropped by their geometric mean).
    reference_policy_kl_penalty: coefficient of the KL to where the stage began (0: none); its type "k2" or "k3", its clamps
    (null: none), and use_on_policy_kl_approximation, which weighs it by pi_train / pi_sampling.
    use_kl_in_reward and positive_example_nll_weight are known so that a config of NeMo RL may have them, at their neutral values.
    """

    token_level_loss: bool = True
    disable_ppo_ratio: bool = False  # no ratio: the plain policy gradient
    force_on_policy_ratio: bool = False  # a ratio of exactly 1, with its gradient
    sequence_level_importance_ratios: bool = False  # one ratio a reply (GSPO)
    use_cispo: bool = False  # the clamped ratio as a weight without gradient
    ratio_clip_min: float = 0.2  # the ratio's lower bound is 1 less this
    ratio_clip_max: float = 0.2  # its upper bound is 1 and this
    ratio_clip_c: float | None = None  # dual clipping: the bound of the loss where the advantage is below 0 (null: none)
    use_importance_sampling_correction: bool = False
    truncated_importance_sampling_type: str | None = None
    truncated_importance_sampling_ratio: float | None = None  # the upper bound of these weights
    truncated_importance_sampling_ratio_min: float | None = None  # the lower bound
    reference_policy_kl_penalty: float = 0.0
    reference_policy_kl_type: str = "k3"  # its form
    kl_input_clamp_value: float | None = 20.0  # bound of the log-ratio in it
    kl_output_clamp_value: float | None = 10.0  # bound of its value
    use_on_policy_kl_approximation: bool = False
    use_kl_in_reward: bool = False
    positive_example_nll_weight: float = 0.0


@dataclass
class PretrainedConfig:
    """`checkpointing.pretrained_checkpoint`: weights that somebody else trained, which a stage without a parent begins with.

    path: a Hugging Face folder, a distributed checkpoint of megatron-core, or a folder that leads to one (a step_N of NeMo RL or
    of a run; what Megatron-LM and Bridge save to). format: hf or megatron (null: what is found there). The network is
    that of policy.model_name, and the tokenizer policy.tokenizer's.
    """

    path: str = "???"
    format: str | None = None


@dataclass
class CheckpointingConfig:
    """`checkpointing`: a stage always saves at its end; save_period adds one every so many steps (0: none).

    keep_top_k is how many of a stage's checkpoints stay (0: all): the newest ones or, with metric_name, the best ones, and
    beside them the newest, to resume from. metric_name: what the best is told by at the stage's validations (val_period):
    val:reward, the mean over all domains, or val:<domain>; a stage then hands on its best checkpoint instead of its last
    (null). checkpoint_must_save_by: DD:HH:MM:SS since the job started, by which the run has saved and stopped (null: no limit).
    async_save: checkpoints inside a stage are written by other processes while it trains on (Megatron's name for it).
    """

    save_period: int = 0
    keep_top_k: int = 1
    metric_name: str | None = None
    higher_is_better: bool = True  # whether metric_name's best is its highest
    pretrained_checkpoint: PretrainedConfig | None = None  # what a stage without a parent begins with (null: policy.model_name says)
    checkpoint_must_save_by: str | None = None
    async_save: bool = False


@dataclass
class SandboxConfig:
    """`sandbox`: where model-written code runs: in a sandbox on this host (url null) or on those that `url` names.

    url: `http://host:port` of `nemo-cascade sandbox-serve`, with commas between several; their token is the environment variable
    NEMO_CASCADE_SANDBOX_TOKEN, because a config is written to the run directory.
    """

    url: str | None = None


@dataclass
class LoggerConfig:
    """`logger`: where metrics go besides `metrics.jsonl`, which is always written; the blocks as `stages.trackers` says.

    rollouts_per_step: of every RL step so many rollouts are kept as texts for `nemo-cascade report` (0: none).
    """

    tensorboard_enabled: bool = False  # event files too
    wandb_enabled: bool = False  # Weights & Biases too
    mlflow_enabled: bool = False  # MLflow too
    tensorboard: dict[str, Any] = field(default_factory=dict)  # log_dir: a folder instead of the stage's own
    wandb: dict[str, Any] = field(default_factory=dict)  # words for wandb.init
    mlflow: dict[str, Any] = field(default_factory=dict)  # experiment_name, run_name, tracking_uri
    rollouts_per_step: int = 8
