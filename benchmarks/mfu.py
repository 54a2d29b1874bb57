"""Model FLOP/s utilisation of SFT on a slice of Nano's layers, on one GPU.

    python benchmarks/mfu.py --out mfu.json
    python benchmarks/mfu.py --layers 7 --experts 32 --tokens 16384 --documents 4 --steps 10

Takes the first layers of nemo_cascade's `nano_30b_a3b` at full width, trains them with `Policy.train_step` on packs
that are full of documents of one length, and counts what the mathematics needs (`train_flops`), not what is recomputed
or padded. Against the GPU's dense peak in BF16, and beside the 33 % to be reached (TARGET).

Where 128 experts a layer do not fit, fewer take their place, as on a rank of expert parallel: a token still goes to 6.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

from nemo_cascade.models.config import ModelConfig
from nemo_cascade.models.presets import PRESETS

TARGET = 0.33
# Dense BF16 peak in FLOP/s by what the device's name contains, from NVIDIA's data sheets; the first match counts.
PEAKS = {"B200": 2250e12, "H200": 989e12, "H100 NVL": 835e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}
# MEMEM*E: what Nano repeats.
PERIOD = 7
# Of weights in BF16, gradients and Adam's three numbers in float32.
BYTES_A_PARAMETER = 2 + 4 + 12


def rows(model: ModelConfig, experts: int) -> dict[str, int]:
    """Rows of width hidden_size of a layer's matrices, by its kind, with so many experts of 2 ffn rows each."""
    inner = model.mamba_num_heads * model.mamba_head_dim
    attention = 2 * model.num_attention_heads + 2 * model.num_query_groups
    ffn = experts * model.moe_ffn_hidden_size + model.moe_shared_expert_intermediate_size
    return {
        "M": model.mamba_in_proj_size + inner,
        "*": attention * model.kv_channels,
        "E": 2 * ffn + model.num_moe_experts,
    }


def parameters(model: ModelConfig) -> int:
    """The matrices' numbers; norms and the like are thousandths."""
    of_layers = rows(model, model.num_moe_experts)
    return model.hidden_size * (2 * model.vocab_size + sum(of_layers[kind] for kind in model.pattern))


def product_flops(model: ModelConfig, tokens: int) -> int:
    """FLOPs of the products with weights in one forward pass, two for each multiplication and addition: of the experts
    those that a token is sent to, and the output layer."""
    of_layers = rows(model, model.moe_router_topk)
    return 2 * tokens * model.hidden_size * (model.vocab_size + sum(of_layers[kind] for kind in model.pattern))


def mixing_flops(model: ModelConfig, lengths: list[int]) -> int:
    """FLOPs of what mixes a document's tokens in one forward pass.

    Attention: scores and values of the pairs that a causal mask leaves. Mamba: its convolution and its recurrence
    (h = a h + dt x B^T, y = C h: 6 a number of the state), not what the chunked form does beside it.
    """
    inner = model.mamba_num_heads * model.mamba_head_dim
    channels = inner + 2 * model.mamba_num_groups * model.mamba_state_dim
    mamba = sum(lengths) * (2 * model.mamba_conv_kernel * channels + 6 * inner * model.mamba_state_dim)
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    attention = 4 * model.num_attention_heads * model.kv_channels * pairs
    return model.pattern.count("M") * mamba + model.pattern.count("*") * attention


def train_flops(model: ModelConfig, lengths: list[int]) -> float:
    """FLOPs of forward and backward: the latter has two products for each of the former's."""
    return 3 * (product_flops(model, sum(lengths)) + mixing_flops(model, lengths))


def peak_flops(device: str) -> float:
    """The dense BF16 peak of a GPU by its name, in FLOP/s. Raises ValueError for one that is not in the table."""
    for name, peak in PEAKS.items():
        if name in device:
            return peak
    raise ValueError(f"no BF16 peak known for {device}; add it to PEAKS in benchmarks/mfu.py")


def sliced(layers: int, experts: int) -> ModelConfig:
    """Nano's first layers with so many experts each, registered as a preset of its own."""
    nano = PRESETS["nano_30b_a3b"]
    name = f"nano_first_{layers}_of_{experts}_experts"
    PRESETS[name] = dataclasses.replace(nano, name=name, pattern=nano.pattern[:layers], num_moe_experts=experts)
    return PRESETS[name]


def fitting(gpu_bytes: int) -> tuple[int, int]:
    """(layers, experts): whole periods of the pattern, and most experts, whose state leaves a third of a GPU free."""
    for experts in (128, 64, 32, 16):
        for periods in (4, 3, 2, 1):
            if BYTES_A_PARAMETER * parameters(sliced(periods * PERIOD, experts)) < gpu_bytes * 2 / 3:
                return periods * PERIOD, experts
    raise ValueError(f"a GPU of {gpu_bytes / 2**30:.0f} GiB holds no slice; give --layers and --experts")


def measure(name: str, length: int, documents: int, steps: int, packs: int = 1, **megatron_cfg) -> dict:
    """Steps on so many packs of documents of one length, in this process alone: seconds of each but the first two, which
    warm up, losses of all, and the most memory that was allocated."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig, OptimizerConfig, PolicyConfig, SequencePackingConfig

    config = PolicyConfig(
        model_name=name,
        precision="bfloat16",
        sequence_packing=SequencePackingConfig(train_mb_tokens=length * documents),
        megatron_cfg=MegatronConfig(optimizer=OptimizerConfig(lr=1e-4), **megatron_cfg),
    )
    parallel.init(config.megatron_cfg)
    import torch

    from nemo_cascade.data.sample import Sample
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.stages.sft import sft_loss

    policy = Policy(config, seed=0, max_num_steps=steps + 2)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, policy.preset.vocab_size, (packs * documents, length), generator=generator).tolist()
    samples = [Sample(tokens=row, loss_mask=[0] + [1] * (length - 1), fields={}) for row in rows]
    seconds, losses = [], []
    for _ in range(steps + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        losses.append(policy.train_step(samples, sft_loss, as_sampled=False)["loss"])
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[2:], "losses": losses, "memory": torch.cuda.max_memory_allocated()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, help="of Nano's; with --experts, or both as they fit")
    parser.add_argument("--experts", type=int, default=128, help="of a layer, beside --layers")
    parser.add_argument("--tokens", type=int, default=16_384, help="of a pack")
    parser.add_argument("--documents", type=int, default=4, help="of a pack, all of one length")
    parser.add_argument("--packs", type=int, default=1, help="of a step")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--recompute", action="store_true", help="every layer in the backward pass")
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/mfu.py needs a CUDA GPU, and there is none here")
    device = torch.cuda.get_device_name()
    peak = peak_flops(device)
    size = torch.cuda.get_device_properties(0).total_memory
    model = sliced(*(args.layers, args.experts) if args.layers else fitting(size))
    length = args.tokens // args.documents
    run = measure(model.name, length, args.documents, args.steps, args.packs, activation_checkpointing=args.recompute)
    step = statistics.median(run["seconds"])
    flops = args.packs * train_flops(model, [length] * args.documents)
    result = {
        "device": device,
        "peak_flops": peak,
        "pattern": model.pattern,
        "experts": model.num_moe_experts,
        "tokens": length * args.documents,
        "packs": args.packs,
        "documents": args.documents,
        "recompute": args.recompute,
        "flops": flops,
        "mfu": flops / step / peak,
        "target": TARGET,
        **run,
    }
    print(
        f"{device}: layers {model.pattern} with {model.num_moe_experts} experts, "
        f"{args.packs} x {result['tokens']} tokens a step, "
        f"{step:.3f} s: {flops / step / 1e12:.0f} TFLOP/s, MFU {result['mfu']:.1%} beside {TARGET:.0%}; "
        f"loss {run['losses'][0]:.3f} to {run['losses'][-1]:.3f}, {run['memory'] / 2**30:.1f} GiB"
    )
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
