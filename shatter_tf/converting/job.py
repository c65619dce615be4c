"""What `shatter convert` does: reads a BERT, and makes a run of it that is checked and then published."""

import functools
import hashlib
import os
import shlex

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.core import task_factory

from shatter_tf.checkpoints import PREFIX, count_parameters
from shatter_tf.converting import hugging_face, model_garden
from shatter_tf.converting.source import Source, has
from shatter_tf.converting.weights import listed, variable_name, variables_by_name
from shatter_tf.errors import UserError, all_of, argument, first_line
from shatter_tf.files import all_or_nothing, check_name, contents
from shatter_tf.serving.load import load_model
from shatter_tf.tasks.registry import get_experiment
from shatter_tf.training import run_dir
from shatter_tf.training.precision import policy_scope
from shatter_tf.training.run_dir import Run

_FAMILY = "bert"
_WITH_HEAD, _WITHOUT_HEAD = "shatter/pretrain", "shatter/embed"

_CHECKED = (3, 16)  # rows and tokens of random ids
_TOLERANCE = 1e-6  # between what was made and what was written

_CHUNK_BYTES = 1 << 24


def convert(source_dir: str, model_dir: str) -> list[str]:
    """Makes a run of a BERT that Hugging Face's or Google's software wrote; `model_dir` gets all of it or nothing.

    Returns:
      Lines on what was read, what was made of it, and what to do next.

    Raises:
      UserError: with everything that cannot be converted, before anything is written; and when it cannot be written.
    """
    all_of(functools.partial(_check_source, source_dir), functools.partial(_check_empty, model_dir))

    # What was read.
    source = hugging_face.read(source_dir) if _is_hugging_face(source_dir) else model_garden.read(source_dir)
    experiment = _WITH_HEAD if source.has_masked_lm else _WITHOUT_HEAD
    converted_from = dict(name=os.path.basename(os.path.abspath(source_dir)), sha256=_sha256(source.files))
    run = Run(experiment, _params(experiment, source), source.vocabulary, source.lower_case)
    run.normalizer = source.normalizer
    run.converted_from = converted_from

    # What is made of it.
    with all_or_nothing(model_dir, "model_dir", last=run_dir.EXPERIMENT_FILE) as directory:
        model = _build(run, source)
        run_dir.write(directory, run)
        _save(model, directory)
        _check(model, run, directory, source_dir)
    return [*_describe(source_dir, source, model), *_next(run, model_dir)]


def _check_empty(model_dir: str) -> None:
    where = f"{argument('model_dir')}={model_dir}"
    check_name(model_dir, argument("model_dir"))
    if tf.io.gfile.exists(model_dir):
        if not tf.io.gfile.isdir(model_dir):
            raise UserError(f"{where}: a file; name a new directory")
        if contents(model_dir):
            raise UserError(f"{where}: not empty; name a new directory")


def _check_source(source_dir: str) -> None:
    where = f"{argument('from')}={source_dir}"
    try:
        tf.io.gfile.exists(source_dir)
    except tf.errors.OpError as error:  # a bucket that cannot be reached
        raise UserError(f"{where}: cannot be read ({first_line(error)})") from error
    if not tf.io.gfile.isdir(source_dir):
        if tf.io.gfile.exists(source_dir):
            raise UserError(f"{where}: a file; give the directory that it is in")
        raise UserError(
            f"{where}: no such directory; download a model of a hub first, say by `hf download NAME --local-dir DIR`"
        )
    if run_dir.exists(source_dir):
        raise UserError(f"{where}: a run already; start from it with {argument('init_checkpoint')}={source_dir}")
    if not _is_hugging_face(source_dir) and not has(source_dir, model_garden.CONFIG):
        raise UserError(
            f"{where}: it has neither {hugging_face.CONFIG}, as a BERT of Hugging Face, nor {model_garden.CONFIG}, as "
            "one of Google; give the directory that has it"
        )


def _is_hugging_face(source_dir: str) -> bool:
    return has(source_dir, hugging_face.CONFIG) or has(source_dir, hugging_face.MODULES)


def _sha256(files: list[str]) -> str:
    """Returns the SHA-256 of files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with tf.io.gfile.GFile(path, "rb") as f:
            while chunk := f.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _params(experiment: str, source: Source) -> cfg.ExperimentConfig:
    """Returns the experiment's defaults for this encoder and its texts."""
    params = get_experiment(experiment)
    model = params.task.model
    model.encoder.override({"type": _FAMILY, _FAMILY: source.config.as_dict()}, is_strict=True)
    if source.has_masked_lm:
        model.mlm_activation = source.config.hidden_activation

    of_text = dict(seq_length=source.seq_length, lower_case=source.lower_case, normalizer=source.normalizer)
    for data in (params.task.train_data, params.task.validation_data):
        known = {name: value for name, value in of_text.items() if hasattr(data, name)}  # a corpus has its own
        data.override(known, is_strict=True)
    return params


def _build(run: Run, source: Source) -> tf_keras.Model:
    """Returns the run's model with the weights that were read."""
    tf_keras.utils.set_random_seed(run.params.task.train_data.seed)  # of what the source lacks
    with policy_scope("float32"):
        model = task_factory.get_task(run.params.task).build_model()
    variables = variables_by_name(model.checkpoint_items)

    not_finite = []
    for name, stored in source.weights.items():
        value = np.asarray(stored.read(), np.float32)
        if not np.isfinite(value).all():
            not_finite.append(name)
        if source.transposed and name.endswith("kernel"):
            value = value.T
        variable = variables[variable_name(name)]
        variable.assign(value.reshape(variable.shape))
    if not_finite:
        raise UserError(f"{', '.join(source.files)}: weights are not finite: {listed(not_finite)}; copy it again")
    return model


def _save(model: tf_keras.Model, directory: str) -> None:
    """Writes a checkpoint as training does at step 0."""
    step = tf.Variable(0, trainable=False, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(model=model, **model.checkpoint_items, global_step=step)
    manager = tf.train.CheckpointManager(checkpoint, directory, max_to_keep=1, checkpoint_name=PREFIX)
    manager.save(checkpoint_number=0)


def _check(model: tf_keras.Model, run: Run, directory: str, source_dir: str) -> None:
    """Raises UserError unless what was written gives what was made, for random ids, and all of it is finite."""
    rows, length = _CHECKED
    config = run.params.task.model.encoder.get()
    ids = np.random.default_rng(0).integers(len(run.vocabulary), size=(rows, min(length, config.longest)))
    ids = tf.constant(ids, tf.int32)
    inputs = dict(input_word_ids=ids, input_mask=tf.ones_like(ids), input_type_ids=tf.zeros_like(ids))

    def outputs(model: tf_keras.Model) -> list[np.ndarray]:
        encoder = model.checkpoint_items["encoder"]
        hidden = encoder(inputs, training=False)["sequence_output"]
        return [hidden.numpy(), encoder.text_vectors(hidden, inputs["input_mask"]).numpy()]

    made = outputs(model)
    written = outputs(load_model(run_dir.read(directory), directory)[0])
    if not all(np.isfinite(output).all() for output in made):
        raise UserError(f"{argument('from')}={source_dir}: the encoder's outputs are not finite; copy it again")
    if not all(np.allclose(a, b, rtol=0.0, atol=_TOLERANCE) for a, b in zip(made, written, strict=True)):
        raise UserError(f"{directory}: what was written is not what was made; report this, with the name of the model")


# === What is said ===


def _describe(source_dir: str, source: Source, model: tf_keras.Model) -> list[str]:
    config = source.config
    size = sum(tf.io.gfile.stat(path).length for path in source.files)
    files = listed([os.path.relpath(path, source_dir) for path in source.files])
    casing = "uncased" if source.lower_case else "cased"
    accents = dict(bert="", bert_strip_accents=", accents dropped", bert_keep_accents=", accents kept")
    dimensions = config.embedding_dimensions or config.hidden_size
    return [
        f"read {source_dir}: {source.kind}, {files} ({size / 1e6:,.1f} MB)"
        f"{', with its masked-LM head' if source.has_masked_lm else ''}",
        f"  encoder: {config.num_layers} layers of width {config.hidden_size}, {config.num_attention_heads} heads, "
        f"feed-forward {config.intermediate_size} ({config.hidden_activation}), {config.max_position_embeddings} "
        f"positions, {config.vocab_size:,} rows of word embeddings; {count_parameters(model.variables):,} parameters",
        f"  tokenizer: {len(source.vocabulary):,} wordpieces, {casing}{accents[source.normalizer]}, as in BERT "
        f"(normalizer={source.normalizer}); texts of at most {source.seq_length} tokens",
        f"  vector of a text: {'mean of its tokens' if config.embedding_pooling == 'mean' else 'that of [CLS]'}"
        f"{', mapped linearly' if config.embedding_dimensions else ''}"
        f"{', divided by its length' if config.embedding_unit_length else ''}; {dimensions} numbers",
        *([] if source.has_pooler else ["  no pooler: it is random, and not used (pooled_output is the mean)"]),
        *(f"  decided: {note}" for note in source.notes),
        *(f"  left out: {line}" for line in source.left_out),
    ]


def _next(run: Run, model_dir: str) -> list[str]:
    name = os.path.basename(os.path.abspath(model_dir))
    folder = os.path.dirname(model_dir.rstrip("/"))
    quoted = shlex.quote(model_dir)
    tuned = shlex.quote(os.path.join(folder, f"{name}_classify"))
    served = shlex.quote(os.path.join("served", name))
    return [
        f"wrote {model_dir}: a run of {run.experiment}, checked on random ids; next, one of",
        f"  shatter train --experiment=classify --data_dir=my_labels --init_checkpoint={quoted} --model_dir={tuned}",
        f"  shatter export --model_dir={quoted} --export_dir={served}",
        f"  shatter predict --model={served} --signature=embed 'A text.'",
    ]
