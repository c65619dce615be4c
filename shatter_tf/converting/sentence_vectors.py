"""How sentence-transformers makes the vector of a text from what a BERT returns: modules.json and what it names."""

import dataclasses
import os
from typing import Any

from shatter_tf.converting.source import has, read_json
from shatter_tf.errors import UserError, collected, raise_all

MODULES = "modules.json"

# In this order; of each but the first, none or one.
_ORDER = ("Transformer", "Pooling", "Dense", "Normalize")

_POOLINGS = {"mean": "mean", "mean_tokens": "mean", "cls": "first_token", "cls_token": "first_token"}
_MODE = "pooling_mode_"

# What a Transformer takes of the BERT.
_OF_TEXT = dict(method="forward", method_output_name="last_hidden_state")


@dataclasses.dataclass
class SentenceVectors:
    """What modules.json describes; its defaults are those of a plain BERT.

    Attributes:
      folder: of the BERT.
      settings: of BertConfig.
      seq_length: 0 where nothing is said.
      dense: the folder of a linear map; "" for none.
      lower_cases: whether texts are lower-cased before the tokenizer.
      left_out, notes: as in Source.
    """

    folder: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    seq_length: int = 0
    dense: str = ""
    has_bias: bool = True
    lower_cases: bool = False
    left_out: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def read(directory: str) -> SentenceVectors:
    """Returns what a directory says of vectors of texts; raises UserError for what an encoder here cannot do."""
    path = os.path.join(directory, MODULES)
    if not has(directory, MODULES):
        return SentenceVectors(directory)
    modules = {}
    kinds = []
    for module in read_json(path, list):
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise UserError(f"{path}: a module without a type; copy it again")
        kinds.append(module["type"].rpartition(".")[2])
        modules[kinds[-1]] = os.path.join(directory, module.get("path") or "").rstrip("/")
    if kinds != [kind for kind in _ORDER if kind in modules] or kinds[:1] != [_ORDER[0]]:
        raise UserError(
            f"{path}: the modules are {', '.join(kinds)}; only {', '.join(_ORDER)} can be converted, in this order"
        )

    found = SentenceVectors(modules["Transformer"])
    problems: list[str] = []
    with collected(problems):
        _read_transformer(found)
    with collected(problems):
        if "Pooling" in modules:
            found.settings["embedding_pooling"] = _pooling(os.path.join(modules["Pooling"], "config.json"), found.notes)
    with collected(problems):
        if "Dense" in modules:
            found.dense = modules["Dense"]
            _read_dense(found)
    with collected(problems):
        if "Normalize" in modules:
            _read_normalize(found, os.path.join(modules["Normalize"], "config.json"))
    with collected(problems):
        _read_prompts(os.path.join(directory, "config_sentence_transformers.json"), found)
    raise_all(problems)
    return found


def _read_transformer(found: SentenceVectors) -> None:
    path = os.path.join(found.folder, "sentence_bert_config.json")
    if not has(*os.path.split(path)):
        return
    settings = read_json(path)
    length = settings.get("max_seq_length") or 0
    if type(length) is not int or length < 0:
        raise UserError(f"{path}: max_seq_length={length} is not a positive whole number")
    found.seq_length = length
    found.lower_cases = bool(settings.get("do_lower_case"))
    text = settings.get("modality_config", {}).get("text", {})
    problems = [f"{path}: {name}={text[name]}" for name, usual in _OF_TEXT.items() if text.get(name, usual) != usual]
    if problems:
        raise UserError(f"{'; '.join(problems)}; only the last hidden states can be converted")
    _check_flow(path, settings, "token_embeddings")


def _check_flow(path: str, settings: dict[str, Any], usual: str) -> None:
    """Raises UserError for a module that reads or writes other vectors than it usually does."""
    for name in ("module_input_name", "module_output_name"):
        if settings.get(name, usual) != usual:
            raise UserError(f"{path}: {name}={settings[name]}; only {usual} can be converted")


def _pooling(path: str, notes: list[str]) -> str:
    """Returns our name for the pooling in a config.json."""
    if not has(*os.path.split(path)):
        notes.append(f"{path} is missing: vectors are the mean of tokens, which is that file's default")
        return "mean"
    settings = read_json(path)
    modes = [name.removeprefix(_MODE) for name, value in settings.items() if name.startswith(_MODE) and value is True]
    if "pooling_mode" in settings:  # as newer versions write it
        modes = settings["pooling_mode"]
        modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise UserError(
            f"{path}: pooling_mode is {' and '.join(map(str, modes)) or 'missing'}; only mean_tokens or cls_token can "
            "be converted"
        )
    return _POOLINGS[modes[0]]


def _read_dense(found: SentenceVectors) -> None:
    path = os.path.join(found.dense, "config.json")
    settings = read_json(path)
    activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))  # its default
    if activation.rpartition(".")[2] != "Identity":
        raise UserError(
            f"{path}: activation_function={activation}; only torch.nn.modules.linear.Identity is a map here"
        )
    _check_flow(path, settings, "sentence_embedding")
    width = settings.get("out_features")
    if type(width) is not int or width < 1:
        raise UserError(f"{path}: out_features={width} is not a positive whole number")
    found.settings["embedding_dimensions"] = width
    found.has_bias = settings.get("bias", True) is not False


def _read_normalize(found: SentenceVectors, path: str) -> None:
    found.settings["embedding_unit_length"] = True
    if has(*os.path.split(path)):  # as newer versions write it
        _check_flow(path, read_json(path), "sentence_embedding")


def _read_prompts(path: str, found: SentenceVectors) -> None:
    if not has(*os.path.split(path)):
        return
    settings = read_json(path)
    prompts = {name: prompt for name, prompt in (settings.get("prompts") or {}).items() if prompt}
    if prompts:
        texts = ", ".join(f"{name} {prompt!r}" for name, prompt in prompts.items())
        found.left_out.append(f"prompts ({texts}): put them before your texts yourself")
