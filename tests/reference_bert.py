"""BERT in NumPy, written from the papers with loops, from which tests take what a converted model should give.

Vaswani et al. 2017 (arXiv 1706.03762), sections 3.1 to 3.3: multi-head attention, residual connections with layer
normalization after each, feed-forward layers. Devlin et al. 2019 (arXiv 1810.04805), section 3 and appendix A: word,
position and segment embeddings, gelu (arXiv 1606.08415), the pooler, the masked-LM head that shares the embeddings.

Weights have Hugging Face's names, without a prefix: a dense layer's `weight` is [out, in].
"""

import numpy as np
from scipy.special import erf


def gelu(x):
    """x times the normal distribution's Φ(x)."""
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def tanh_gelu(x):
    """What google-research/bert has in place of it."""
    return x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def dense(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(weights, name, x):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-12) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def attention(weights, name, x, heads):
    """Multi-head attention of one text's tokens, [L, D], among themselves."""
    query, key, value = (dense(weights, f"{name}.self.{part}", x) for part in ("query", "key", "value"))
    width = x.shape[1] // heads
    result = np.zeros_like(x)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(x)):
            shares = softmax(key[:, part] @ query[i, part] / np.sqrt(width))
            result[i, part] = shares @ value[:, part]
    return dense(weights, f"{name}.output.dense", result)


def hidden_states(weights, ids, types, *, layers, heads, activation=gelu):
    """Returns the last layer's vectors, float64 [L, D], of a text without padding: ids [L], segments [L]."""
    weights = {name: np.asarray(weight, np.float64) for name, weight in weights.items()}
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][np.arange(len(ids))]
    x = x + weights["embeddings.token_type_embeddings.weight"][types]
    x = layer_norm(weights, "embeddings.LayerNorm", x)

    for i in range(layers):
        layer = f"encoder.layer.{i}"
        attended = attention(weights, f"{layer}.attention", x, heads)
        x = layer_norm(weights, f"{layer}.attention.output.LayerNorm", x + attended)
        inner = activation(dense(weights, f"{layer}.intermediate.dense", x))
        x = layer_norm(weights, f"{layer}.output.LayerNorm", x + dense(weights, f"{layer}.output.dense", inner))
    return x


def masked_lm_logits(weights, hidden, activation=gelu):
    """Returns the logits of all wordpieces, [L, V], at each of the tokens, [L, D]."""
    weights = {name: np.asarray(weight, np.float64) for name, weight in weights.items()}
    head = "cls.predictions"
    x = layer_norm(
        weights, f"{head}.transform.LayerNorm", activation(dense(weights, f"{head}.transform.dense", hidden))
    )
    return x @ weights["embeddings.word_embeddings.weight"].T + weights[f"{head}.bias"]


def text_vector(hidden, pooling="mean", kernel=None, bias=0.0, unit_length=False):
    """Returns sentence-transformers' vector of a text whose tokens have these vectors, [L, D]; `kernel` is [out, D]."""
    vector = hidden.mean(0) if pooling == "mean" else hidden[0]
    if kernel is not None:
        vector = np.asarray(kernel, np.float64) @ vector + bias
    return vector / np.linalg.norm(vector) if unit_length else vector
