"""Writes the demo data: python -m nemo_cascade.data.demo --out DIR."""

import argparse
from pathlib import Path

from nemo_cascade.data.demo import DOMAINS, ON_REQUEST, write

parser = argparse.ArgumentParser(prog="python -m nemo_cascade.data.demo", description=__doc__)
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--train-rows", type=int, default=4000)
parser.add_argument("--validation-rows", type=int, default=300)
parser.add_argument("--sft-rows", type=int, default=8000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--only", choices=[*DOMAINS, *ON_REQUEST], help=f"one domain; {', '.join(ON_REQUEST)} is written only so")
arguments = parser.parse_args()
write(
    arguments.out,
    train_rows=arguments.train_rows,
    validation_rows=arguments.validation_rows,
    sft_rows=arguments.sft_rows,
    seed=arguments.seed,
    only=arguments.only,
)
