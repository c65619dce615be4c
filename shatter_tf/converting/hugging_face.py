"""Reads a BERT of Hugging Face: config.json, safetensors, a WordPiece tokenizer, and sentence-transformers' modules."""

import functools
import os
import re
from typing import Any

import numpy as np
import tensorflow as tf
from safetensors import SafetensorError, safe_open

from shatter_tf.converting import sentence_vectors, wordpiece
from shatter_tf.converting.sentence_vectors import SentenceVectors
from shatter_tf.converting.source import Source, has, read_config, read_json, understood, usual_length
from shatter_tf.converting.weights import MAP, MASKED_LM, TABLE, Stored, fit, listed
from shatter_tf.encoders.bert.config import BertConfig
from shatter_tf.errors import UserError, collected, first_line, raise_all

CONFIG, MODULES = "config.json", sentence_vectors.MODULES
_FAMILY = "bert"
_WEIGHTS = "model.safetensors"
_OTHER_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")

# "gelu" is x Φ(x) itself in PyTorch; Model Garden gives that name to its approximation by a tanh.
_ACTIVATIONS = dict(
    gelu="exact_gelu",
    gelu_python="exact_gelu",
    gelu_new="gelu",
    gelu_fast="gelu",
    gelu_pytorch_tanh="gelu",
    relu="relu",
    relu2="squared_relu",
    silu="swish",
    swish="swish",
)

# Settings of which only this value, which is also their default, can be converted.
_ONLY: dict[str, Any] = dict(
    position_embedding_type="absolute", is_decoder=False, add_cross_attention=False, layer_norm_eps=1e-12
)

_LFS = b"version https://git-lfs"  # begins what stands in for a large file
_SHORTEST = 8  # tokens of the texts that a model must at least be for

_DECODER = "cls.predictions.decoder."
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
_NEXT_SENTENCE = "cls.seq_relationship."
_FLOATS = ("F64", "F32", "F16", "BF16")


def read(directory: str) -> Source:
    """Returns the BERT in a directory.

    Raises:
      UserError: with everything about it that cannot be converted.
    """
    problems: list[str] = []
    vectors = SentenceVectors(directory)
    with collected(problems), understood(directory):
        vectors = sentence_vectors.read(directory)
    folder = vectors.folder
    config = tokenizer = None
    stored: dict[str, Stored] = {}
    files: list[str] = []
    with collected(problems), understood(os.path.join(folder, CONFIG)):
        config = _config(os.path.join(folder, CONFIG), vectors.settings)
    with collected(problems), understood(folder):
        tokenizer = wordpiece.read(folder)
    with collected(problems):
        stored, files = _open(folder)

    # Do they go together?
    weights: dict[str, Stored] = {}
    left_out: list[str] = []
    if config and stored:
        with collected(problems):
            weights, left_out = _weights(folder, stored, config)
    if config and vectors.dense:
        with collected(problems):
            weights.update(_map(vectors, config))
            files.append(os.path.join(vectors.dense, _WEIGHTS))
    if config and tokenizer and len(tokenizer.vocabulary) > config.vocab_size:
        problems.append(
            f"{folder}: {len(tokenizer.vocabulary):,} wordpieces, but vocab_size={config.vocab_size} in {CONFIG}"
        )
    if tokenizer and vectors.lower_cases and not tokenizer.lower_case:
        problems.append(f"{folder}/sentence_bert_config.json: do_lower_case=true, but the tokenizer is cased")
    raise_all(problems)

    seq_length = vectors.seq_length or min(usual_length(config), tokenizer.longest or usual_length(config))
    if seq_length > config.max_position_embeddings:
        vectors.notes.append(f"max_seq_length={vectors.seq_length} is more than there are positions, and is lowered")
    if seq_length < _SHORTEST:
        raise UserError(f"{folder}: it is for texts of {seq_length} tokens; at least {_SHORTEST} are needed")
    is_sentences = folder != directory or bool(vectors.settings)
    return Source(
        kind=f"a BERT of {'sentence-transformers' if is_sentences else 'Hugging Face'}",
        config=config,
        weights=weights,
        transposed=True,
        vocabulary=tokenizer.vocabulary,
        lower_case=tokenizer.lower_case,
        normalizer=tokenizer.normalizer,
        seq_length=min(seq_length, config.max_position_embeddings),
        files=files,
        left_out=left_out + vectors.left_out,
        notes=tokenizer.notes + vectors.notes,
    )


def _config(path: str, of_vectors: dict[str, Any]) -> BertConfig:
    """Returns the encoder's config; raises UserError for another model than BERT."""
    settings = read_json(path)
    family = settings.get("model_type", _FAMILY)
    if family != _FAMILY:
        raise UserError(
            f"{path}: model_type={family}; only a BERT (model_type={_FAMILY}) can be converted, not relatives such as "
            "roberta, distilbert, albert, electra, mpnet or deberta"
        )
    problems = [
        f"{path}: {name}={settings[name]}; only {usual} can be converted"
        for name, usual in _ONLY.items()
        if settings.get(name, usual) != usual
    ]
    for name, what in (("auto_map", "code of its own"), ("quantization_config", "quantized weights")):
        if settings.get(name):
            problems.append(f"{path}: {name}: the model has {what}, which cannot be converted")
    if settings.get("pruned_heads"):
        problems.append(f"{path}: pruned_heads={settings['pruned_heads']}; layers must have all of their heads")
    with collected(problems):
        config = read_config(path, settings, _ACTIVATIONS)
    raise_all(problems)
    config.override(of_vectors, is_strict=True)
    return config


# === Weights ===


def _open(folder: str) -> tuple[dict[str, Stored], list[str]]:
    """Returns the weights by their names, without reading them, and the files they are in."""
    index = f"{_WEIGHTS}.index.json"
    if has(folder, _WEIGHTS):
        path = os.path.join(folder, _WEIGHTS)
        return _open_file(path), [path]
    if not has(folder, index):
        other = [name for name in _OTHER_WEIGHTS if has(folder, name)]
        if other:
            raise UserError(
                f"{os.path.join(folder, other[0])}: only safetensors are read, which cannot run code; load it with "
                f"transformers, and save it by save_pretrained(..., safe_serialization=True) as {_WEIGHTS}"
            )
        raise UserError(f"{folder}: it has no {_WEIGHTS}; copy the model's weights, too")

    path = os.path.join(folder, index)
    where = read_json(path).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
        raise UserError(f"{path}: it has no weight_map; copy it again")
    files = [os.path.join(folder, os.path.basename(file)) for file in sorted(set(where.values()))]
    found: dict[str, Stored] = {}
    for file in files:
        found.update(_open_file(file))
    lost = sorted(set(where) - set(found))
    if lost:
        raise UserError(f"{path}: its files do not have {listed(lost)}; copy them again")
    return found, files


def _open_file(path: str) -> dict[str, Stored]:
    if "://" in path:
        raise UserError(f"{path}: safetensors are read from a disk; copy the directory to one")
    if not tf.io.gfile.exists(path):
        raise UserError(f"{path}: no such file; copy the model's weights again")
    with tf.io.gfile.GFile(path, "rb") as f:
        if f.read(len(_LFS)) == _LFS:
            raise UserError(f"{path}: only a pointer to the weights; get them with `git lfs pull`")
    try:
        file = safe_open(path, framework="np")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged, or no safetensors ({first_line(error)}); copy it again") from error
    other = sorted(
        {part.get_dtype() for name, part in slices.items() if name.endswith(("weight", "bias"))} - {*_FLOATS}
    )
    if other:
        raise UserError(f"{path}: weights of type {', '.join(other)}; only {', '.join(_FLOATS)} can be converted")
    return {
        name: Stored(tuple(part.get_shape()), functools.partial(file.get_tensor, name)) for name, part in slices.items()
    }


def _own_name(name: str) -> str:
    """Returns what Hugging Face calls a weight that Google calls `name`.

    Example:
    >>> _own_name("encoder/layer_0/output/LayerNorm/gamma"), _own_name("embeddings/word_embeddings")
    ('encoder.layer.0.output.LayerNorm.weight', 'embeddings.word_embeddings.weight')
    """
    name = name.replace("output_bias", "bias").replace("layer_", "layer.").replace("/", ".")
    name = re.sub(r"\.(kernel|gamma)$", ".weight", re.sub(r"\.beta$", ".bias", name))
    return f"{name}.weight" if name.endswith("_embeddings") else name


def _usual_name(name: str) -> str:
    """Returns a weight's name without the prefix of models with heads, and with the newer names of norms."""
    name = name.removeprefix("bert.")
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))


def _layout(name: str, shape: tuple) -> tuple:
    return shape[::-1] if name.endswith("kernel") else shape


def _weights(folder: str, stored: dict[str, Stored], config: BertConfig) -> tuple[dict[str, Stored], list[str]]:
    """Returns the weights by Google's names, and what is left out; raises UserError unless they are a BERT's."""
    problems = []
    usual = {_usual_name(name): weight for name, weight in stored.items()}
    if len(usual) < len(stored):
        problems.append("weights are there twice, with and without the prefix bert.")
    with collected(problems):
        _tie(usual)
    found, unfit, rest = fit(usual, config, _own_name, _layout)
    problems += unfit

    is_left_out = (*_BUFFERS, _NEXT_SENTENCE)
    of_encoder = ("embeddings.", "encoder.", "pooler.", "cls.predictions.")
    more = [name for name in rest if name.startswith(of_encoder) and not name.startswith(is_left_out)]
    if more:
        problems.append(f"weights are there that such a BERT does not have: {listed(more)}")
    if problems:
        raise UserError("; ".join(f"{folder}: {problem}" for problem in problems))

    left_out = []
    if any(name.startswith(_BUFFERS) for name in rest):
        left_out.append("position numbers (embeddings.position_ids), which are not trained")
    if any(name.startswith(_NEXT_SENTENCE) for name in rest):
        left_out.append("the next-sentence head (cls.seq_relationship)")
    heads = sorted({name.split(".")[0] for name in rest if not name.startswith(is_left_out)})
    left_out += [f"the head {head}, which was fine-tuned for one task" for head in heads]
    return found, left_out


def _tie(usual: dict[str, Stored]) -> None:
    """Removes the second names of what the masked-LM head shares; raises UserError if it does not share them."""
    for own, shared in (
        (f"{_DECODER}weight", _own_name(TABLE)),
        (f"{_DECODER}bias", _own_name(f"{MASKED_LM}output_bias")),
    ):
        if own not in usual:
            continue
        weight = usual.pop(own)
        usual.setdefault(shared, weight)
        if weight.shape != usual[shared].shape or not np.array_equal(weight.read(), usual[shared].read()):
            raise UserError(
                f"{own} is not {shared}, with which the masked-LM head here shares it; without the weights of "
                "cls.predictions the encoder can be converted"
            )


def _map(vectors: SentenceVectors, config: BertConfig) -> dict[str, Stored]:
    """Returns the weights of sentence-transformers' Dense."""
    path = os.path.join(vectors.dense, _WEIGHTS)
    stored = _open_file(path)
    width = config.embedding_dimensions
    if not vectors.has_bias:
        stored["linear.bias"] = Stored((width,), lambda: np.zeros(width, np.float32))
    wanted = {"linear.weight": ("kernel", (width, config.hidden_size)), "linear.bias": ("bias", (width,))}
    shapes = {name: weight.shape for name, weight in stored.items()}
    if shapes != {name: shape for name, (_, shape) in wanted.items()}:
        raise UserError(f"{path}: {shapes}, where linear.weight should be [{width}, {config.hidden_size}]")
    return {f"{MAP}{ours}": stored[name] for name, (ours, _) in wanted.items()}
