"""What word counts alone achieve: TF-IDF and a linear SVM, the baseline for a pretrained encoder to beat.

  python research/word_counts.py LABELLED_DIR

LABELLED_DIR holds `train` and `dev` files as for shatter/classify. It prints the accuracy on `dev`, with whole texts.
"""

import sys

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from shatter_tf.data.labelled import LabelledDataConfig, choose_files, load_both


def main(directory: str) -> None:
    train, dev = LabelledDataConfig(), LabelledDataConfig()
    choose_files(train, dev, directory)
    rows = {split: part for split, (part, _) in zip(("train", "dev"), load_both(train, dev), strict=True)}
    texts = {split: [" ".join(row.texts) for row in rows[split]] for split in rows}
    labels = {split: [row.label for row in rows[split]] for split in rows}
    for longest, name in ((1, "single words"), (2, "and pairs of words")):
        model = make_pipeline(TfidfVectorizer(sublinear_tf=True, ngram_range=(1, longest)), LinearSVC())
        model.fit(texts["train"], labels["train"])
        print(f"{name}: {model.score(texts['dev'], labels['dev']):.3f} of {len(texts['dev'])}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
