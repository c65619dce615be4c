"""What a run can show: its model, its data and its logs, made into the figures of pictures.py."""

import functools
import os
from collections.abc import Iterable

import numpy as np
import tensorflow as tf
import tf_keras
from matplotlib.figure import Figure
from official.core import task_factory
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shatter_tf.console import say
from shatter_tf.data.corpus.shards import VOCABULARY_FILE
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.encoders.registry import build_encoder
from shatter_tf.errors import UserError, argument
from shatter_tf.files import write_whole
from shatter_tf.measuring import pictures
from shatter_tf.serving.load import load_model
from shatter_tf.tasks.base import BaseTask
from shatter_tf.training import run_dir

# Of the validation text that is shown when none is given.
_MOST_TOKENS = 24

# Longer than any text.
_UNLIMITED = 2**20


class LeftOut(Exception):
    """A picture that this run cannot provide; the text says why."""


def write(
    model: str,
    output: str | None = None,
    output_dir: str | None = None,
    text: str | None = None,
    layer: int | None = None,
) -> None:
    """Draws a run, and says which files were written and which pictures left out.

    Args:
      model: the run's directory.
      output: a file that gets the partition and the attention; or None, with `output_dir`.
      output_dir: a directory that gets all pictures.
      text, layer: as for Shown.

    Raises:
      UserError: for wrong arguments, a file that cannot be written, and an `output` that the run cannot provide.
    """
    if output and not output.endswith(".png"):
        raise UserError(f"{argument('output')}={output}: pictures are PNG; give a name that ends in .png")
    shown = Shown(run_dir.read(model, "model"), model, text, layer)

    if output:
        try:
            figure = shown.partition_and_attention()
        except LeftOut as reason:
            raise UserError(f"{argument('output')}={output}: {reason}") from reason
        _write(argument("output"), output, figure)
        return

    for draw in (shown.partition, shown.attention, shown.curves, shown.confusion):
        name = f"{draw.__name__}.png"
        try:
            figure = draw()
        except LeftOut as reason:
            say(f"left out {name}: {reason}")
            continue
        _write(argument("output_dir"), os.path.join(output_dir, name), figure)


def _write(where: str, path: str, figure: Figure) -> None:
    """Writes a figure to the path that the argument `where` asks for, and says so; raises UserError."""
    picture = pictures.to_png(figure)
    try:
        tf.io.gfile.makedirs(os.path.dirname(path) or ".")
        write_whole(path, picture)
    except tf.errors.OpError as error:
        raise UserError(f"{where}: {path} cannot be written ({error.message})") from error
    say(f"wrote {path}")


class Shown:
    """The pictures of one run, each drawn by the method of its name, which raises LeftOut if there is nothing to draw.

    Args:
      run: what `run_dir.read` returns.
      model_dir: where that is.
      text: whose attention is shown; None takes one of the validation data.
      layer: the one whose attention is shown, from 1 on; None takes all.

    Raises:
      UserError: for a text that the encoder cannot take, or a layer that it does not have.
    """

    def __init__(self, run: run_dir.Run, model_dir: str, text: str | None = None, layer: int | None = None):
        self.run = run
        self.model_dir = model_dir
        self.config = run.params.task
        self.family = self.config.model.encoder.get()
        self.tokenizer = Tokenizer(run.vocabulary, run.lower_case, run.normalizer)

        number = self.family.num_layers
        if layer is not None and not 1 <= layer <= number:
            raise UserError(f"{argument('layer')}={layer}: the encoder has layers 1 to {number}")
        self.layers = range(number) if layer is None else [layer - 1]
        self.inputs = None if text is None else self._encode(text)

    def partition(self) -> Figure:
        return pictures.draw_partition(*self.parts)

    def attention(self) -> Figure:
        return pictures.draw_attention(**self._attention())

    def partition_and_attention(self) -> Figure:
        return pictures.draw_attention(**self._attention(), partition=self.parts)

    def curves(self) -> Figure:
        metric = self.run.params.trainer.best_checkpoint_eval_metric
        names = ("loss", metric)
        history = run_dir.read_history(self.model_dir)
        validation = {name: [(entry["step"], entry[name]) for entry in history if name in entry] for name in names}
        training = read_scalars(os.path.join(self.model_dir, "train"), names)
        if not any((*validation.values(), *training.values())):
            raise LeftOut(f"neither history.jsonl nor TensorBoard's files in {self.model_dir}")
        return pictures.draw_curves(metric, training, validation)

    def confusion(self) -> Figure:
        labels = self.config.class_labels()
        if labels is None:
            raise LeftOut(f"a run of {self.run.experiment}, which does not choose a label for each text")

        # The original vocabulary file may be gone; the run keeps a copy.
        data = self.config.validation_data.replace(vocab_file=os.path.join(self.model_dir, VOCABULARY_FILE))
        try:
            batches = self.task.build_inputs(data)
        except UserError as error:
            raise LeftOut(f"the validation data cannot be read ({error})") from error
        counts = self.task.confusion(self.model, batches.take(self.run.params.trainer.validation_steps))
        return pictures.draw_confusion(labels, counts)

    @functools.cached_property
    def task(self) -> BaseTask:
        """The run's task, which opens its data when it is asked for it."""
        return task_factory.get_task(self.config)

    @functools.cached_property
    def model(self) -> tf_keras.Model:
        """The trained model."""
        try:
            return load_model(self.run, self.model_dir)[0]
        except UserError as error:
            raise LeftOut(str(error)) from error

    @functools.cached_property
    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Relative positions as far as the run's sequences reach, [R], and the partition there, [P, R]."""
        reach = self.config.train_data.seq_length - 1
        # Whole tokens, without the one that reads, and enough points between them to draw smooth curves where they are
        # a few pixels apart.
        right = np.concatenate([np.arange(1, reach + 1), np.arange(1, 20, 0.02), np.geomspace(1, reach, 500)])
        right = np.unique(right[right <= reach])
        r = np.concatenate([-right[::-1], right])

        # An encoder without its weights is enough: a run without a checkpoint has parts, too.
        f = build_encoder(self.config.model.encoder, use_pooler=False).parts_at(r)
        if f is None:
            raise LeftOut(f"{self.family.title} has no parts")
        return r, f

    def _attention(self) -> dict:
        """Returns the arguments of `draw_attention`."""
        names = pictures.part_names(*self.parts)
        encoder = self.task.pretrained_parts(self.model)["encoder"]
        inputs = self.inputs or self.sample_inputs()
        attention = encoder.attention_to(inputs)
        if attention is None:
            raise LeftOut(f"{self.family.title} has no attention that can be drawn")
        return dict(
            tokens=[self.run.vocabulary[i] for i in inputs["input_word_ids"][0].numpy()],
            maps={f"layer {i + 1}": attention.maps[i] for i in self.layers},
            totals={f"layer {i + 1}": attention.totals[i] for i in self.layers},
            names=names,
        )

    def sample_inputs(self) -> dict[str, tf.Tensor]:
        """Returns the encoder's inputs for the beginning of the first validation text, int32 [1, L]."""
        try:
            return self.config.sample_inputs(self.tokenizer, min(_MOST_TOKENS, self.family.longest))
        except (UserError, tf.errors.OpError) as error:
            raise LeftOut(f"no validation data to take a text from ({error}); give {argument('text')}") from error

    def _encode(self, text: str) -> dict[str, tf.Tensor]:
        """Returns the encoder's inputs for a text that the user gave, int32 [1, L]; raises UserError."""
        texts = text.split("\t")
        expected = self.config.texts
        if len(texts) != len(expected) or not all(part.strip() for part in texts):
            kind = "one text, without tabs" if len(expected) == 1 else "two texts with a tab between"
            raise UserError(f"{argument('text')}={text!r}: the model takes {kind}")

        first, *second = (tf.constant([part]) for part in texts)
        inputs = self.tokenizer.pad(self.tokenizer.encode(first, second[0] if second else None, _UNLIMITED))
        length = inputs["input_word_ids"].shape[1]
        if length > self.family.longest:
            raise UserError(
                f"{argument('text')}: {length} tokens, [CLS] and [SEP] among them, but the encoder takes at most "
                f"{self.family.longest}; shorten it"
            )
        return inputs


def read_scalars(directory: str, names: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
    """Returns (step, value) pairs in order, by name, from TensorBoard's files; for a step done twice, the last."""
    events = EventAccumulator(directory, size_guidance={"tensors": 0})
    if tf.io.gfile.isdir(directory):
        events.Reload()

    found = {name: {} for name in names}
    for name in set(names) & set(events.Tags()["tensors"]):
        for event in events.Tensors(name):
            found[name][event.step] = float(tf.make_ndarray(event.tensor_proto))
    return {name: sorted(values.items()) for name, values in found.items()}
