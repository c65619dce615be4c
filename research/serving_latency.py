"""Latency of exported classifiers, Shatter's against BERT's of the same sizes: a Markdown table and a line of JSON.

  python research/serving_latency.py --config_file=configs/pretrain_mini.yaml
  python research/serving_latency.py --config_file=configs/pretrain_base.yaml --batch_size=1,8 --rounds=10
  python research/serving_latency.py --config_file=configs/pretrain_base.yaml --against=bfloat16

Both are exported with random weights, loaded again and queried in turn through `serving_default`, with strings: every
round queries each of them once. A ratio is that of the two times of one round; its median and quartiles are the figures
to use on a machine with other work. Texts have exactly the number of tokens stated, each a word of the vocabulary.
"""

import argparse
import json
import os
import statistics
import tempfile
import time

VOCABULARY_SIZE = 30522
LABELS = ("first", "second", "third")


def parse_arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", required=True, metavar="F", help="the encoder's sizes")
    parser.add_argument(
        "--against", choices=("bert", "bfloat16"), default="bert", help="or Shatter with such matrices [bert]"
    )
    parser.add_argument("--batch_size", type=numbers, default=[1, 8, 32], metavar="N[,N]", help="[1,8,32]")
    parser.add_argument("--seq_length", type=numbers, default=[32, 128, 512], metavar="N[,N]", help="[32,128,512]")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="requests to each model [30]")
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help="… or until S have passed [60]")
    return parser.parse_args()


def export(config_file: str, encoder_type: str, bfloat16: bool, seq_length: int, path: str) -> int:
    """Exports a classifier with random weights, and returns its number of parameters."""
    import tensorflow as tf
    from official.core import task_factory

    from shatter_tf.checkpoints import count_parameters
    from shatter_tf.data.tokenizer import Tokenizer
    from shatter_tf.data.vocabulary import SPECIAL_TOKENS
    from shatter_tf.serving.load import in_bfloat16
    from shatter_tf.serving.servable import Servable
    from shatter_tf.tasks.classify import ClassifyConfig
    from shatter_tf.training import settings

    sizes = dict(vocab_size=VOCABULARY_SIZE, max_sequence_length=seq_length)
    override = f"task.model.encoder.type={encoder_type},task.train_data.seq_length={seq_length}"
    override += "".join(f",task.model.encoder.shatter.{name}={size}" for name, size in sizes.items())
    pretraining = settings.resolve_without_data(config_file=config_file, params_override=override).task

    config = ClassifyConfig()
    config.model.encoder = pretraining.model.encoder
    config.model.num_classes = len(LABELS)
    config.train_data.labels = list(LABELS)
    config.train_data.seq_length = seq_length
    task = task_factory.get_task(config)
    model = task.build_model()
    if bfloat16:
        model = in_bfloat16(config, model)

    words = [f"w{i}" for i in range(VOCABULARY_SIZE - len(SPECIAL_TOKENS))]
    servable = Servable(task, model, Tokenizer([*SPECIAL_TOKENS, *words], lower_case=True))
    tf.saved_model.save(servable.trackable(), path, signatures=servable.functions)
    return count_parameters(model.trainable_variables)


def measure(functions: dict, texts, rounds: int, seconds: float) -> dict:
    """Returns each model's times in milliseconds, one for each round, by its name."""
    times = {name: [] for name in functions}
    names = list(functions)
    end = None
    for i in range(rounds + 2):  # two to warm up
        for name in names:
            start = time.perf_counter()
            functions[name](text=texts)["probabilities"].numpy()
            if i >= 2:
                times[name].append(1000 * (time.perf_counter() - start))
        names.reverse()  # neither is always the first
        end = end or time.perf_counter() + seconds
        if i >= 4 and time.perf_counter() > end:
            break
    return times


def summary(times: list[float], batch_size: int) -> dict:
    median = statistics.median(times)
    p95 = sorted(times)[min(len(times) - 1, int(0.95 * len(times)))]
    return dict(median_ms=round(median, 2), p95_ms=round(p95, 2), texts_per_second=round(1000 * batch_size / median, 1))


def export_both(args: argparse.Namespace, directory: str) -> tuple[dict, dict]:
    """Exports both models; returns them, loaded again, and their sizes, each by name."""
    import tensorflow as tf

    models = {}
    sizes = {}
    for name in ("shatter", args.against):
        path = os.path.join(directory, name)
        encoder_type = "bert" if name == "bert" else "shatter"
        parameters = export(args.config_file, encoder_type, name == "bfloat16", max(args.seq_length), path)
        graph = os.path.getsize(os.path.join(path, "saved_model.pb"))
        variables = os.path.getsize(os.path.join(path, "variables/variables.data-00000-of-00001"))
        sizes[name] = dict(
            parameters=parameters,
            saved_model_pb_mb=round(graph / 1e6, 2),
            variables_mb=round(variables / 1e6, 1),
        )
        models[name] = tf.saved_model.load(path)
    return models, sizes


def main() -> None:
    args = parse_arguments()
    import numpy as np
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as directory:
        models, sizes = export_both(args, directory)
    functions = {name: model.signatures["serving_default"] for name, model in models.items()}

    rng = np.random.default_rng(0)
    rows = []
    other = {"bert": "BERT", "bfloat16": "bfloat16"}[args.against]
    print(f"| batch × tokens | Shatter, ms (p95) | {other}, ms (p95) | texts/s | Shatter : {other} (quartiles) |")
    print("|---|---|---|---|---|", flush=True)
    for length in args.seq_length:
        for batch_size in args.batch_size:
            words = rng.integers(VOCABULARY_SIZE - 5, size=[batch_size, length - 2])  # [CLS] and [SEP] are two more
            texts = tf.constant([" ".join(f"w{i}" for i in row) for row in words])
            times = measure(functions, texts, args.rounds, args.seconds)

            ratios = [ours / theirs for ours, theirs in zip(times["shatter"], times[args.against], strict=True)]
            first, ratio, third = statistics.quantiles(ratios, n=4)
            row = dict(batch_size=batch_size, tokens=length, rounds=len(ratios))
            row.update({name: summary(values, batch_size) for name, values in times.items()})
            row.update(ratio=round(ratio, 3), quartiles=[round(first, 3), round(third, 3)])
            rows.append(row)

            ours = row["shatter"]
            theirs = row[args.against]
            print(
                f"| {batch_size} × {length} | {ours['median_ms']} ({ours['p95_ms']}) "
                f"| {theirs['median_ms']} ({theirs['p95_ms']}) "
                f"| {ours['texts_per_second']} : {theirs['texts_per_second']} "
                f"| {ratio:.2f} ({first:.2f}–{third:.2f}) |",
                flush=True,
            )
    load = os.getloadavg()[0]
    print(json.dumps(dict(config=args.config_file, cores=os.cpu_count(), load=load, sizes=sizes, rows=rows)))


if __name__ == "__main__":
    main()
