"""Tiny BERTs in the form in which Hugging Face's transformers saves them."""

import json

import numpy as np
from safetensors.numpy import save_file

D, H, F, L, V, P = 12, 3, 20, 2, 43, 24
WORDS = ["the", "cat", "sat", "on", "mat", "a", "dog", "ran", "##s", "cafe", "s", ".", "!"]
VOCABULARY = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
CONFIG = dict(
    model_type="bert",
    vocab_size=V,
    hidden_size=D,
    num_hidden_layers=L,
    num_attention_heads=H,
    intermediate_size=F,
    max_position_embeddings=P,
    type_vocab_size=2,
    hidden_act="gelu",
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.1,
    layer_norm_eps=1e-12,
)


def random_weights(head=False, pooler=True, width=D, seed=0, positions=P, rows=V):
    """Weights with Hugging Face's names, large enough for each to matter."""
    rng = np.random.default_rng(seed)
    shapes = {}

    def dense(name, inputs, outputs):
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)

    def norm(name):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    for name, number in (("word", rows), ("position", positions), ("token_type", 2)):
        shapes[f"embeddings.{name}_embeddings.weight"] = (number, width)
    norm("embeddings.LayerNorm")
    for i in range(L):
        layer = f"encoder.layer.{i}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            dense(f"{layer}.attention.{part}", width, width)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", width, F)
        dense(f"{layer}.output.dense", F, width)
        norm(f"{layer}.output.LayerNorm")
    if pooler:
        dense("pooler.dense", width, width)
    if head:
        dense("cls.predictions.transform.dense", width, width)
        norm("cls.predictions.transform.LayerNorm")
        shapes["cls.predictions.bias"] = (rows,)
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_bert(directory, stored, config=CONFIG, vocabulary=VOCABULARY):
    """Writes a directory as transformers' `save_pretrained` does, without tokenizer.json."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config)
    write_json(directory / "tokenizer_config.json", dict(do_lower_case=True, tokenizer_class="BertTokenizer"))
    (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    save_file({name: np.ascontiguousarray(weight) for name, weight in stored.items()}, directory / "model.safetensors")
    return directory
