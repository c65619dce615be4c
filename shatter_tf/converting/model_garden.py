"""Reads a BERT of Google's code or of Model Garden: bert_config.json, vocab.txt, and a checkpoint of TF 1 or TF 2."""

import functools
import os
import re

import tensorflow as tf
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from shatter_tf.converting import wordpiece
from shatter_tf.converting.source import Source, read_config, read_json, understood, usual_length
from shatter_tf.converting.weights import Stored, fit, listed, variable_name
from shatter_tf.data.corpus.shards import VOCABULARY_FILE
from shatter_tf.data.vocabulary import read_vocabulary
from shatter_tf.encoders.bert.config import BertConfig
from shatter_tf.errors import UserError, collected, first_line, raise_all

CONFIG = "bert_config.json"
_CHECKPOINT = "bert_model.ckpt"
_INDEX = ".index"

# "gelu" is the approximation by a tanh in google-research/bert, and in Model Garden.
_ACTIVATIONS = dict(gelu="gelu", relu="relu", tanh="tanh")

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # in checkpoints of TF 2
_OF_OPTIMIZER = re.compile(r"(^|/)(optimizer|adam_[mv]|Adam\w*|\.OPTIMIZER_SLOT|global_step|save_counter)(/|$)")

# Where Model Garden's name of a weight begins, behind those of the models that it is part of.
_OF_BERT = re.compile(
    r"(?:^|/)((?:word_embeddings|position_embedding|type_embeddings|embeddings/layer_norm|transformer/layer_\d+|"
    r"pooler_transform|cls/predictions)/.*)"
)


def read(directory: str) -> Source:
    """Returns the BERT in a directory.

    Raises:
      UserError: with everything about it that cannot be converted.
    """
    problems: list[str] = []
    config = None
    stored: dict[str, Stored] = {}
    vocabulary: list[str] = []
    is_tf2 = False
    checkpoint = ""
    path = os.path.join(directory, CONFIG)
    with collected(problems), understood(path):
        settings = read_json(path)
        config = read_config(path, settings, _ACTIVATIONS)
        if settings.get("embedding_size") not in (None, config.hidden_size):
            problems.append(f"{path}: embedding_size={settings['embedding_size']}; only hidden_size can be converted")
    with collected(problems):
        vocabulary = read_vocabulary(os.path.join(directory, VOCABULARY_FILE))
    with collected(problems):
        checkpoint = _find(directory)
        stored, is_tf2 = _open(checkpoint)

    # Do they go together?
    weights: dict[str, Stored] = {}
    rest: list[str] = []
    if config and stored:
        spell, layout = (_tf2_name, functools.partial(_heads_apart, config)) if is_tf2 else (_tf1_name, _as_it_is)
        weights, unfit, rest = fit(stored, config, spell, layout)
        more = [name for name in rest if _is_of_bert(name)]
        if more:
            unfit.append(f"weights are there that such a BERT does not have: {listed(more)}")
        problems += [f"{checkpoint}: {problem}" for problem in unfit]
    if config and len(vocabulary) > config.vocab_size:
        problems.append(
            f"{directory}: {len(vocabulary):,} wordpieces in {VOCABULARY_FILE}, but vocab_size={config.vocab_size} in "
            f"{CONFIG}"
        )
    raise_all(problems)

    lower_case, note = wordpiece.casing_of(vocabulary)
    heads = sorted({name.rpartition("/")[0] or name for name in rest})
    files = [name for name in tf.io.gfile.listdir(directory) if name.startswith(f"{os.path.basename(checkpoint)}.data")]
    return Source(
        kind=f"a BERT in a checkpoint of TensorFlow {2 if is_tf2 else 1}",
        config=config,
        weights=weights,
        transposed=False,
        vocabulary=vocabulary,
        lower_case=lower_case,
        normalizer="bert",
        seq_length=usual_length(config),
        files=[os.path.join(directory, name) for name in sorted(files)],
        left_out=[f"other heads ({listed(heads)})"] if heads else [],
        notes=[note],
    )


def _find(directory: str) -> str:
    """Returns the prefix of the one checkpoint in a directory."""
    names = [name.removesuffix(_INDEX) for name in tf.io.gfile.listdir(directory) if name.endswith(_INDEX)]
    if _CHECKPOINT in names:
        names = [_CHECKPOINT]
    if not names:
        raise UserError(f"{directory}: it has no {_CHECKPOINT}{_INDEX}; copy the checkpoint, too")
    if len(names) > 1:
        raise UserError(f"{directory}: it has the checkpoints {listed(sorted(names))}; leave one of them there")
    return os.path.join(directory, names[0])


def _open(checkpoint: str) -> tuple[dict[str, Stored], bool]:
    """Returns the weights by their names, without reading them, and whether TF 2 wrote them."""
    try:
        reader = tf.compat.v1.train.NewCheckpointReader(checkpoint)
        shapes = reader.get_variable_to_shape_map()
        is_tf2 = _GRAPH in shapes
        names = _names_of_variables(reader) if is_tf2 else {name: name for name in shapes}
    except (tf.errors.OpError, LookupError, ValueError, RuntimeError) as error:
        raise UserError(f"{checkpoint}: damaged, or no checkpoint ({first_line(error)}); copy it again") from error
    return {
        name: Stored(tuple(shapes[key]), functools.partial(reader.get_tensor, key))
        for key, name in names.items()
        if key in shapes and not _OF_OPTIMIZER.search(key)
    }, is_tf2


def _names_of_variables(reader) -> dict[str, str]:
    """Returns what variables were called, from Model Garden's part of it on, by their keys in a checkpoint of TF 2.

    Keys tell how models are nested, which differs; the names of variables are the same since Model Garden's first BERT.
    """
    graph = TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor(_GRAPH))
    found = {}
    for node in graph.nodes:
        for attribute in node.attributes:
            match = _OF_BERT.search(attribute.full_name)
            found[attribute.checkpoint_key] = match[1] if match else attribute.full_name
    return found


def _tf1_name(name: str) -> str:
    return name if name.startswith("cls/") else f"bert/{name}"


def _tf2_name(name: str) -> str:
    return variable_name(name).removeprefix("bert/")


def _is_of_bert(name: str) -> bool:
    """Whether a name, of either kind, is one of the encoder or the masked-LM head."""
    return bool(_OF_BERT.match(name)) or name.startswith(("bert/", "cls/predictions/"))


def _as_it_is(name: str, shape: tuple) -> tuple:
    return shape


def _heads_apart(config: BertConfig, name: str, shape: tuple) -> tuple:
    """Returns a shape with the attention's heads as a dimension of their own."""
    heads = (config.num_attention_heads, config.hidden_size // config.num_attention_heads)
    if "/attention/self/" in name:
        return (*shape[:-1], *heads)
    return (*heads, *shape[1:]) if name.endswith("/attention/output/dense/kernel") else shape
