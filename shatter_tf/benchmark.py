"""Measures what pretraining costs, for Shatter and other encoders, on a device or without it.

  shatter benchmark --compare=bert --target=cpu --seq_length=128 --batch_size=8
  shatter benchmark --compare=bert --target=tpu:v4:2x2x1 --seq_length=512 --batch_size=8 --json=tpu.json
  shatter benchmark --target=tpu:v5e:2x2 --seq_length=128,512 --batch_size=8,16 --plot=tpu.png
  shatter benchmark --target=gpu:v100 --seq_length=512 --batch_size=8 --memory_gb=16

It builds each one's whole training step (encoder, masked-LM head, AdamW) with random weights and needs no corpus. Sizes
are BERT-Base's unless a config or --params_override say otherwise. All combinations of lengths and sizes are measured.
"bert" is Model Garden's, as it is by default; "tuned_bert" the best of docs/results.md: rotary positions, post-norm and
squared ReLU.

Targets: cpu and gpu run the steps in turn, as training would: compiled by XLA, whose buffer assignment also says how
much memory they take, or, on a CPU that multiplies in bfloat16, in that and without XLA. The others compile them for a
device that need not be present. TPU targets (tpu:v4:2x2x1, tpu:v5e:2x2) use the compiler of real TPUs (`make
tpu-compiler` gets it): memory and cycles are then the compiler's own estimates for one chip's core, the same at every
run. GPU targets (gpu:v100, t4, a100, rtx4090, h100; `make gpu-compiler`) use XLA and give memory, but no times.
Precision is bfloat16, or float16 on a V100 and a T4, which have no bfloat16.
"""

import argparse

from shatter_tf.console import importing, new_parser, run


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("benchmark", __doc__)
    numbers = dict(type=_numbers, metavar="N[,N]")
    compared = "bert, tuned_bert, bpt, smart_bird, …, separated by commas [bert,tuned_bert on cpu and gpu, else bert]"
    parser.add_argument("--compare", type=lambda text: text.split(","), metavar="M[,M]", help=compared)
    parser.add_argument("--target", default="cpu", metavar="T", help="cpu, gpu, tpu:… or gpu:…, see above [cpu]")
    parser.add_argument("--seq_length", **numbers, default=[512], help="tokens in a row [512]")
    parser.add_argument("--batch_size", **numbers, default=[8], help="rows in a step, on one device [8]")
    config = parser.add_mutually_exclusive_group()
    config.add_argument("--config", metavar="NAME", help="a config that comes with the package; `shatter configs`")
    config.add_argument("--config_file", metavar="F", help="YAML with settings that differ from the defaults")
    parser.add_argument("--params_override", default="", metavar="k=v,…", help="settings that win over CONFIG_FILE")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="steps of each to time on cpu and gpu [5]")
    parser.add_argument("--memory_gb", type=float, metavar="GB", help="also the largest batch that fits in this memory")
    parser.add_argument("--train_steps", type=int, metavar="N", help="also the days that N steps take")
    parser.add_argument("--global_batch_size", type=int, default=256, metavar="N", help="… of N rows [256]")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="… on N devices [1]")
    parser.add_argument("--json", metavar="F", help="write the figures there")
    parser.add_argument("--plot", metavar="F", help="draw the figures there (PNG)")
    parser.add_argument("--hlo_dir", metavar="DIR", help="keep what XLA was given, and what it made of it, there")
    parser.add_argument("--compiler_python", metavar="F", help="Python with the compiler [.venv-tpu/… or .venv-gpu/…]")
    args = parser.parse_args(argv)
    kind, compiler, _ = args.target.partition(":")
    args.compare = args.compare or (["bert"] if compiler else ["bert", "tuned_bert"])  # a TPU's compiler takes minutes
    args.compiler_python = args.compiler_python or f".venv-{kind}/bin/python"
    return args


def _numbers(text: str) -> list[int]:
    values = [int(value) for value in text.split(",")]
    if min(values) < 1:
        raise ValueError
    return values


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    with importing():
        from shatter_tf.measuring import cost

    cost.benchmark(args)


if __name__ == "__main__":
    run(main)
