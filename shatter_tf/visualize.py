"""Draws what a run has learnt, and how: its parts, its attention, its curves and its mistakes.

  python -m shatter_tf.visualize --model=runs/labels 'A star is a ball of plasma.' --output=star.png
  python -m shatter_tf.visualize --model=runs/labels --output_dir=pictures

--output=FILE.png is one figure: the partition, and below it the attention. --output_dir=DIR gets

  partition.png   how relative positions are shared among the parts (of Shatter encoders)
  attention.png   what each token of a text reads in every layer, and from which parts (of Shatter encoders)
  curves.png      the loss and the main metric against steps
  confusion.png   which label of the validation data is taken for which (of shatter/classify)

with the weights whose evaluation was best, or else the newest. What a run cannot show is reported and left out.
"""

import argparse
import functools
import os

from shatter_tf.command_line import UserError, new_parser, quieten_logging, run

# Of the validation text that is shown when none is given.
_MOST_TOKENS = 24


class LeftOut(Exception):
    """A picture that this run cannot provide; the text says why."""


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("visualize", __doc__)
    parser.add_argument(
        "--model", "--model_dir", dest="model_dir", required=True, metavar="DIR", help="a run of shatter_tf.train"
    )
    output = parser.add_mutually_exclusive_group(required=True)
    output.add_argument("--output", metavar="FILE.png", help="gets the partition and the attention")
    output.add_argument("--output_dir", metavar="DIR", help="gets all pictures; older ones give way")
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "text",
        nargs="?",
        default=argparse.SUPPRESS,  # or it would override --text
        metavar="TEXT",
        help="whose attention is shown; of pairs, two with a tab between [the first validation text's start]",
    )
    text.add_argument("--text", metavar="TEXT", help="the same; it may begin with a dash")
    parser.add_argument("--layer", type=int, metavar="N", help="show the attention of this layer alone, from 1 on")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    from shatter_tf import model_dir, pictures

    if args.output and not args.output.endswith(".png"):
        raise UserError(f"--output={args.output}: pictures are PNG; give a name that ends in .png")
    quieten_logging()
    shown = Shown(model_dir.read(args.model_dir, "--model"), args.model_dir, args.text, args.layer)
    if args.output:
        try:
            picture = pictures.to_png(shown.partition_and_attention())
        except LeftOut as reason:
            raise UserError(f"--output={args.output}: {reason}") from reason
        _write("--output", args.output, picture)
        return
    for draw in (shown.partition, shown.attention, shown.curves, shown.confusion):
        name = f"{draw.__name__}.png"
        try:
            picture = pictures.to_png(draw())
        except LeftOut as reason:
            print(f"left out {name}: {reason}", flush=True)
            continue
        _write("--output_dir", os.path.join(args.output_dir, name), picture)


def _write(flag: str, path: str, picture: bytes) -> None:
    """Writes a picture to the path that `flag` asks for, and says so; raises UserError."""
    import tensorflow as tf

    from shatter_tf.files import write_whole

    try:
        tf.io.gfile.makedirs(os.path.dirname(path) or ".")
        write_whole(path, picture)
    except tf.errors.OpError as error:
        raise UserError(f"{flag}: {path} cannot be written ({error.message})") from error
    print(f"wrote {path}", flush=True)


class Shown:
    """The pictures of one run, each drawn by the method of its name, which raises LeftOut if there is nothing to draw.

    Args:
      finished: what `model_dir.read` gives.
      model_dir: where that is.
      text: whose attention is shown; None takes one of the validation data.
      layer: the one whose attention is shown, from 1 on; None takes all.

    Raises:
      UserError: for a text that the encoder cannot take, or a layer that it does not have.
    """

    def __init__(self, finished, model_dir: str, text: str | None, layer: int | None):
        from shatter_tf.data.tokenizer import Tokenizer

        self.run, self.model_dir = finished, model_dir
        self.task, encoder = finished.params.task, finished.params.task.model.encoder
        self.config = encoder.any if encoder.type == "any" else None
        number = encoder.get().num_layers
        if layer is not None and not 1 <= layer <= number:
            raise UserError(f"--layer={layer}: the encoder has layers 1 to {number}")
        self.layers = range(number) if layer is None else [layer - 1]
        self.tokenizer = Tokenizer(finished.vocabulary, finished.lower_case)
        self.inputs = None if text is None else self._encode_text(text)

    def _encode_text(self, text: str):
        """Returns the encoder's inputs for --text; raises UserError."""
        texts, expected = text.split("\t"), 1 + getattr(self.task, "pairs", False)
        if len(texts) != expected or not all(part.strip() for part in texts):
            kind = "two texts with a tab between" if expected == 2 else "one text, without tabs"
            raise UserError(f"--text={text!r}: the model takes {kind}")
        inputs = self._encode(texts)
        length, encoder = inputs["input_word_ids"].shape[1], self.task.model.encoder
        most = self.config.max_sequence_length if self.config else encoder.bert.max_position_embeddings
        if length > most:
            raise UserError(
                f"--text: {length} tokens, [CLS] and [SEP] among them, but the encoder takes at most {most}; shorten it"
            )
        return inputs

    def _encode(self, texts, most_tokens: int = 2**20):
        import tensorflow as tf

        columns = [tf.constant([text]) for text in texts]
        encoded = self.tokenizer.encode(columns[0], columns[1] if len(columns) > 1 else None, most_tokens)
        return self.tokenizer.pad(encoded)

    def _validation_text(self):
        """Returns the encoder's inputs for the beginning of the validation data's first text."""
        import tensorflow as tf

        from shatter_tf.data import labelled, shards

        data, length = self.task.validation_data, min(_MOST_TOKENS, self.config.max_sequence_length)
        try:
            if isinstance(data, labelled.LabelledDataConfig):
                return self._encode(labelled.load_rows(data)[0].texts, length)
            if self.run.experiment != "shatter/pretrain":
                raise LeftOut(f"the data of {self.run.experiment} is not looked at for a text; give --text")
            shard = shards.Corpus.read(data.input_path).validation[0]
            records = tf.data.TFRecordDataset(os.path.join(data.input_path, shard.file))
            example = tf.train.Example.FromString(next(iter(records)).numpy())
        except (UserError, tf.errors.OpError) as error:
            raise LeftOut(f"no validation data to take a text from ({error}); give --text") from error
        ids = example.features.feature["ids"].int64_list.value
        ids = tf.constant([[*ids[:-1][: length - 1], ids[-1]]], tf.int32)
        return dict(input_word_ids=ids, input_mask=tf.ones_like(ids), input_type_ids=tf.zeros_like(ids))

    @functools.cached_property
    def model(self):
        """The trained model."""
        from shatter_tf.serving import load_model

        try:
            return load_model(self.run, self.model_dir)[0]
        except UserError as error:
            raise LeftOut(str(error)) from error

    @functools.cached_property
    def parts(self):
        """Relative positions as far as the run's sequences reach, [R], and the partition there, [P, R]."""
        import numpy as np

        from shatter_tf.partition import soft_partition

        if self.config is None:
            raise LeftOut("the encoder is BERT, which has no parts")
        reach = self.task.train_data.seq_length - 1
        # Whole tokens, without the one that reads, and enough points between them to draw smooth curves where they are
        # a few pixels apart.
        right = np.concatenate([np.arange(1, reach + 1), np.arange(1, 20, 0.02), np.geomspace(1, reach, 500)])
        right = np.unique(right[right <= reach])
        r = np.concatenate([-right[::-1], right])
        return r, soft_partition(self.config, r).numpy()

    def partition(self):
        from shatter_tf import pictures

        return pictures.draw_partition(*self.parts)

    def attention(self):
        from shatter_tf import pictures

        return pictures.draw_attention(**self._attention())

    def partition_and_attention(self):
        from shatter_tf import pictures

        return pictures.draw_attention(**self._attention(), partition=self.parts)

    def _attention(self) -> dict:
        """Returns the arguments of `draw_attention`."""
        import tensorflow as tf

        from shatter_tf import pictures
        from shatter_tf.attention import part_totals
        from shatter_tf.encoder import ShatterEncoder
        from shatter_tf.partition import position_partition

        names = pictures.part_names(*self.parts)
        trained = self.model.checkpoint_items["encoder"]
        inputs = self.inputs or self._validation_text()
        encoder = ShatterEncoder(self.config.replace(return_attention_scores=True, output_range=None))
        encoder(inputs)  # creates its variables
        if encoder.pooler is not None:
            encoder.pooler.trainable = trained.pooler.trainable  # Keras's order of weights depends on it
        encoder.set_weights(trained.get_weights())
        scores = encoder(inputs)["attention_scores"]
        ids = inputs["input_word_ids"][0].numpy()
        partition = position_partition(self.config, len(ids))
        maps = {f"layer {i + 1}": scores[i][:, 0] for i in self.layers}
        if self.config.normalizer == "part_row_sum":  # only shares of a row count then, and layers can be compared
            maps = {name: tf.math.divide_no_nan(a, tf.reduce_sum(a, -1, keepdims=True)) for name, a in maps.items()}
        return dict(
            tokens=[self.run.vocabulary[i] for i in ids],
            maps={layer: a[0].numpy() for layer, a in maps.items()},
            totals={layer: part_totals(a, partition)[0].numpy() for layer, a in maps.items()},
            names=names,
        )

    def curves(self):
        from shatter_tf import pictures
        from shatter_tf.model_dir import read_history

        metric = self.run.params.trainer.best_checkpoint_eval_metric
        history = read_history(self.model_dir)
        validation = {name: [(e["step"], e[name]) for e in history if name in e] for name in ("loss", metric)}
        training = _read_scalars(os.path.join(self.model_dir, "train"), ("loss", metric))
        if not any((*validation.values(), *training.values())):
            raise LeftOut(f"neither history.jsonl nor TensorBoard's files in {self.model_dir}")
        return pictures.draw_curves(metric, training, validation)

    def confusion(self):
        import numpy as np
        import tensorflow as tf
        from official.core import task_factory

        from shatter_tf import pictures
        from shatter_tf.data.shards import VOCABULARY_FILE

        if self.run.experiment != "shatter/classify":
            raise LeftOut(f"a run of {self.run.experiment}, not of shatter/classify")
        # The original vocabulary file may be gone; the run keeps a copy.
        data = self.task.validation_data.replace(vocab_file=os.path.join(self.model_dir, VOCABULARY_FILE))
        try:
            batches = task_factory.get_task(self.task).build_inputs(data)
        except UserError as error:
            raise LeftOut(f"the validation data cannot be read ({error})") from error
        model, number = self.model, len(self.run.labels)
        predict = tf.function(lambda inputs: tf.argmax(model(inputs, training=False), axis=-1), autograph=False)
        counts = np.zeros([number, number], np.int64)
        for batch in batches.take(self.run.params.trainer.validation_steps):
            rows = batch.pop("row_weights").numpy() > 0
            np.add.at(counts, (batch.pop("label_ids").numpy()[rows], predict(batch).numpy()[rows]), 1)
        return pictures.draw_confusion(self.run.labels, counts)


def _read_scalars(directory: str, names) -> dict[str, list[tuple[int, float]]]:
    """Returns (step, value) pairs in order, by name, from TensorBoard's files; for a step done twice, the last."""
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(directory, size_guidance={"tensors": 0})
    if tf.io.gfile.isdir(directory):
        events.Reload()
    found = {name: {} for name in names}
    for name in set(names) & set(events.Tags()["tensors"]):
        for event in events.Tensors(name):
            found[name][event.step] = float(tf.make_ndarray(event.tensor_proto))
    return {name: sorted(values.items()) for name, values in found.items()}


if __name__ == "__main__":
    run(main)
