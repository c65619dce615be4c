"""What `shatter evaluate` does: a run or an export answers every row of a labelled file, and is judged."""

import contextlib
import json
import os
from collections.abc import Sequence
from typing import Any, Optional

import tensorflow as tf

from shatter_tf.checkpoints import checkpoint_step, while_training
from shatter_tf.console import say
from shatter_tf.data import tables
from shatter_tf.errors import UserError, argument
from shatter_tf.files import write_whole
from shatter_tf.measuring.evaluation import answers, labels, numbers, tags  # noqa: F401  they register kinds
from shatter_tf.measuring.evaluation.kind import KINDS, Asked, Kind, Source
from shatter_tf.measuring.evaluation.report import Report
from shatter_tf.measuring.pictures import to_png
from shatter_tf.serving.load import load_model
from shatter_tf.serving.predict_file import shown
from shatter_tf.serving.predictions import check_output, writing
from shatter_tf.serving.predictor import Model, Outputs, answer, latest_version, open_export
from shatter_tf.serving.servable import build_servable
from shatter_tf.training import run_dir


def evaluate(
    model: str,
    source: Source,
    output: Optional[str] = None,
    json_file: Optional[str] = None,
    pictures: Optional[str] = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Judges a model by a labelled file, says how good it is, and writes what is asked for.

    Args:
      model: a training run, whose best checkpoint is judged; or an export.
      source: the file.
      output: gets each row with its prediction, see `writing`.
      json_file: gets all figures.
      pictures: a directory that gets the pictures.
      trust: whether an export may have operations that no export needs.

    Returns:
      All figures.

    Raises:
      UserError: for what cannot be read, judged or written.
    """
    if output:
        check_output(output, source.path)
    if not tf.io.gfile.exists(source.path):
        raise UserError(f"{argument('input')}={source.path}: no such file")

    opened, name, source = _open(model, source, trust)
    kind = _kind_of(opened, model)
    rows, note = kind.read(source)
    say(f"{name}\n{note}")

    outputs = [outputs for _, outputs in shown(opened.each(rows, lambda row: row.texts), len(rows))]
    report = kind.judge(rows, outputs)
    report.figures = dict(model=name, input=source.path, rows=len(rows), **report.figures)
    for line in report.lines:
        say(line)

    _write(report, json_file, pictures)
    if output:
        _write_predictions(output, opened, kind, source, rows, outputs)
    return report.figures


def _open(path: str, source: Source, trust: bool) -> tuple[Model, str, Source]:
    """Returns a model, its name, and the file as it was understood in training, where nobody says otherwise."""
    if not run_dir.exists(path):
        return open_export(path, trust=trust), latest_version(path), source

    run = run_dir.read(path, "model")
    model, checkpoint = while_training(lambda: load_model(run, path, name="model"))
    servable = build_servable(run, model)
    names = [spec.name for spec in servable.signatures["serving_default"].takes]
    function = servable.functions["serving_default"]
    opened = Model(names, lambda **texts: function(*(texts[name] for name in names)), servable)
    name = f"{run.experiment} in {path}, step {checkpoint_step(checkpoint):,}"
    return opened, name, _as_in_training(run, source)


def _as_in_training(run: run_dir.Run, source: Source) -> Source:
    """Returns a file whose columns are understood as those of the training data, where it has them, unless told."""
    train = run.params.task.train_data
    text_fields, label_field, separator = (
        getattr(train, name, "") for name in ("text_fields", "label_field", "label_separator")
    )
    names: Sequence[str] = ()
    if text_fields or label_field:
        with contextlib.suppress(UserError):  # not a table, or one that `Kind.read` refuses
            names = tables.read_table(source.path, [*text_fields, *label_field.split(",")]).columns
    return Source(
        source.path,
        source.text_fields or (list(text_fields) if {*text_fields} <= {*names} else ()),
        source.label_field or (label_field if {*label_field.split(",")} <= {*names} else ""),
        source.label_separator or separator,
    )


def _kind_of(model: Model, path: str) -> Kind:
    """Returns how a model is judged, by the names of its outputs; raises UserError."""
    sample = model.outputs([[""] * len(model.names)])
    kind = KINDS.get(frozenset(sample))
    if kind is None:
        raise UserError(
            f"{argument('model')}={path}: it gives {', '.join(sorted(sample))}, which no label says to be right or "
            "wrong; evaluate a model of labels, numbers, tags or answers"
        )
    return kind(model.names, sample)


def _write(report: Report, json_file: Optional[str], directory: Optional[str]) -> None:
    files: dict[str, str | bytes] = {}
    if json_file:
        files[json_file] = json.dumps(report.figures, indent=1, ensure_ascii=False) + "\n"
    for name, figure in report.pictures.items() if directory else ():
        files[os.path.join(directory, f"{name}.png")] = to_png(figure)

    for path, content in files.items():
        try:
            tf.io.gfile.makedirs(os.path.dirname(path) or ".")
            write_whole(path, content)
        except tf.errors.OpError as error:
            raise UserError(f"{path}: cannot be written ({error.message})") from error
        say(f"wrote {path}")


def _write_predictions(
    path: str, model: Model, kind: Kind, source: Source, rows: Sequence[Asked], outputs: Sequence[Outputs]
) -> None:
    beside = kind.columns(source, rows)
    names = list(dict.fromkeys(name for values in beside for name in values))
    with writing(path, names) as write:
        for row, values, output in zip(rows, beside, outputs, strict=True):
            write(values, answer(output, dict(zip(model.names, row.texts, strict=True))))
    say(f"wrote {path}")
