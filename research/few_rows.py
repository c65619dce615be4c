"""Few labels: draws of a labelled data set's training rows, to see what an encoder is worth where labels are scarce.

    python research/few_rows.py --data=data/tasks/rt [--per_class=100] [--seeds=3]

Writes data/tasks/rt_100_0, rt_100_1 and so on, one for each seed, with that many rows of each class in train.tsv, and
the same dev.tsv. Of sentences with a tag for each word, which empty lines separate, it draws that many sentences.
"""

import argparse
import collections
import pathlib
import random
import shutil


def draw(text: str, number: int, seed: int) -> str:
    """Returns `number` random rows of each class, in random order, or sentences, of the contents of a .tsv.

    Example:
    >>> draw("good\\tpos\\nbad\\tneg\\nfine\\tpos\\n", 1, seed=0).count("pos")
    1
    """
    rng = random.Random(seed)
    sentences = text.strip().split("\n\n")
    if len(sentences) > 1:
        return "".join(f"{sentence}\n\n" for sentence in rng.sample(sentences, number))

    by_class = collections.defaultdict(list)
    for line in text.splitlines():
        by_class[line.rsplit("\t", 1)[1]].append(line)
    drawn = [line for label in sorted(by_class) for line in rng.sample(by_class[label], number)]
    rng.shuffle(drawn)
    return "".join(f"{line}\n" for line in drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=pathlib.Path, help="a directory with train.tsv and dev.tsv")
    parser.add_argument("--per_class", type=int, default=100, help="rows of each class, or sentences")
    parser.add_argument("--seeds", type=int, default=3, help="draws")
    args = parser.parse_args()

    text = (args.data / "train.tsv").read_text()
    for seed in range(args.seeds):
        directory = args.data.with_name(f"{args.data.name}_{args.per_class}_{seed}")
        directory.mkdir(exist_ok=True)
        (directory / "train.tsv").write_text(draw(text, args.per_class, seed))
        shutil.copy(args.data / "dev.tsv", directory / "dev.tsv")
        print(directory)


if __name__ == "__main__":
    main()
