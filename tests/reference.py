"""Shatter's equations in NumPy, written from the paper and docs/design.md alone, one loop or line for each symbol."""

import math

import numpy as np


def part(p: int, r: float, parts: int, family: str, scale: float) -> float:
    """f_p(r)."""
    t = 0.5
    if r != 0:
        if parts >= 6 and parts % 2 == 0:
            nearest, c = 7 / (3 * (parts - 1)), 3 / 4 * (parts - 4) * scale
        else:
            nearest, c = 1 / (parts - 1) if parts > 1 else 1.0, scale
        far = (abs(r) - 1) / (abs(r) - 1 + c)
        t = 0.5 * (1 + math.copysign(nearest + (1 - nearest) * far, r))
    if family == "linear":
        return max(0.0, 1 - abs(t * (parts - 1) - p))
    return math.comb(parts - 1, p) * t**p * (1 - t) ** (parts - 1 - p)


def partition(length: int, parts: int, family: str, scale: float) -> np.ndarray:
    """f_p(j - i), [P, L, L]."""
    f = np.zeros((parts, length, length))
    for p in range(parts):
        for i in range(length):
            for j in range(length):
                f[p, i, j] = part(p, j - i, parts, family, scale)
    return f


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def attention(x, weights, input_mask, f, normalizer="part_row_sum", sigmoid_bias=5.0):
    """y, [B, L, D], and the map, [B, L, L]: a / n where one n serves all parts, else a."""
    epsilon, part_epsilon, small_share = 1e-6, 3e-5, 1e-2
    batch, length, width = x.shape
    parts = f.shape[0]
    q = x @ weights["wq"] + weights["bq"]
    bias = x @ weights["u"] + weights["bu"] if "u" in weights else np.zeros((batch, length, parts))
    v = np.stack([x @ weights["wv"][:, p] + weights["bv"][p] for p in range(parts)], axis=1)  # [B, P, L, E]
    a = np.zeros((batch, length, length))
    for n in range(batch):
        for i in range(length):
            document = [j for j in range(length) if input_mask[n, j] > 0 and input_mask[n, j] == input_mask[n, i]]
            allowed = [j for j in document if j != i]
            s = {j: q[n, i] @ x[n, j] / math.sqrt(width) + bias[n, i] @ f[:, i, j] for j in allowed}
            row = {j: sigmoid(value - sigmoid_bias) for j, value in s.items()}
            norm = 1.0
            if normalizer == "row_sum":
                norm = sum(row.values()) + epsilon
            elif normalizer == "unit_length":
                norm = math.sqrt(sum(value**2 for value in row.values()) + epsilon)
            for j, value in row.items():
                a[n, i, j] = value / norm
    y = []
    for p in range(parts):
        y.append(np.einsum("blm,lm,bme->ble", a, f[p], v[:, p]))
        if normalizer == "part_row_sum":
            y[p] /= (a * f[p]).sum(-1, keepdims=True) + small_share * a.sum(-1, keepdims=True) + part_epsilon
    y = np.concatenate(y, axis=-1)
    if "wo" in weights:
        y = y @ weights["wo"] + weights["bo"]
    return y, a


def rms_norm(x, scale, epsilon=1e-6):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def squared_relu(x):
    return np.maximum(x, 0) ** 2


def block(h, weights, input_mask, f, norm_first, **choices):
    """One encoder block, [B, L, D]."""

    def norm1(z):
        return rms_norm(z, weights["g1"])

    def norm2(z):
        return rms_norm(z, weights["g2"])

    def feed_forward(z):
        return squared_relu(z @ weights["w1"] + weights["c1"]) @ weights["w2"] + weights["c2"]

    if norm_first:
        h = h + attention(norm1(h), weights, input_mask, f, **choices)[0]
        return h + feed_forward(norm2(h))
    h = norm1(h + attention(h, weights, input_mask, f, **choices)[0])
    return norm2(h + feed_forward(h))
