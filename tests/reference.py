"""Shatter's equations in NumPy, written from the paper and docs/design.md alone, one loop or line for each symbol."""

import math

import numpy as np


def squash(r: float, kind: str, scale: float, parts: int) -> float:
    if kind == "log":
        t = 0.5 * (1 + math.copysign(1, r) * math.log(1 + abs(r)) / math.log(1 + scale))
    elif kind == "rational":
        t = 0.5 * (1 + r / (abs(r) + scale))
    elif r == 0 or parts == 1:
        t = 0.5
    else:
        # Knots on one side: 1, …, scale in geometric progression.
        knots = parts / 2 if parts % 2 == 0 else (parts - 1) / 2
        ordinal = (knots - 1) * math.log(abs(r)) / math.log(scale)  # 0 at |r| = 1, knots - 1 at |r| = scale
        middle = (parts - 1) / 2
        t = (middle + math.copysign(1, r) * (ordinal + (0.5 if parts % 2 == 0 else 1))) / (parts - 1)
    return min(max(t, 0.0), 1.0)


def part(p: int, r: float, parts: int, family: str, kind: str, scale: float) -> float:
    """f_p(r)."""
    t = squash(r, kind, scale, parts)
    distance = abs(t * (parts - 1) - p)
    if family == "linear":
        return max(0.0, 1 - distance)
    if family == "cosine":
        return math.cos(0.5 * math.pi * distance) ** 2 if distance < 1 else 0.0
    if family == "box":
        return 0.5 if abs(distance - 0.5) < 1e-9 else float(distance < 0.5)
    return math.comb(parts - 1, p) * t**p * (1 - t) ** (parts - 1 - p)


def partition(length: int, parts: int, family: str, kind: str, scale: float) -> np.ndarray:
    """f_p(j - i), [P, L, L]."""
    f = np.zeros((parts, length, length))
    for p in range(parts):
        for i in range(length):
            for j in range(length):
                f[p, i, j] = part(p, j - i, parts, family, kind, scale)
    return f


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def attention(x, weights, input_mask, f, activation="sigmoid", normalizer="part_row_sum"):
    """y, [B, L, D], and the map, [B, L, L]: a / n where one n serves all parts, else a."""
    epsilon, part_epsilon = 1e-6, 1e-2
    batch, length, width = x.shape
    parts = f.shape[0]
    q = x @ weights["wq"] + weights["bq"]
    k = x @ weights["wk"] + weights["bk"] if "wk" in weights else x
    none = np.zeros((batch, length, parts))
    b = x @ weights["u"] + weights["bu"] if "u" in weights else none
    c = x @ weights["uk"] + weights["buk"] if "uk" in weights else none
    v = np.stack([x @ weights["wv"][:, p] + weights["bv"][p] for p in range(parts)], axis=1)  # [B, P, L, E]
    a = np.zeros((batch, length, length))
    for n in range(batch):
        for i in range(length):
            allowed = [j for j in range(length) if input_mask[n, j] > 0 and input_mask[n, j] == input_mask[n, i]]
            s = {j: q[n, i] @ k[n, j] / math.sqrt(width) + (b[n, i] + c[n, j]) @ f[:, i, j] for j in allowed}
            if normalizer == "length_bias":
                s = {j: value - math.log(len(allowed)) for j, value in s.items()}
            if activation == "softmax":
                total = sum(math.exp(value) for value in s.values())
                row = {j: math.exp(value) / total for j, value in s.items()}
            elif activation == "squared_relu":
                row = {j: max(value, 0.0) ** 2 for j, value in s.items()}
            else:
                row = {j: sigmoid(value) for j, value in s.items()}
            norm = 1.0
            if normalizer == "row_sum":
                norm = sum(row.values()) + epsilon
            elif normalizer == "root_length":
                norm = math.sqrt(max(len(allowed), 1))
            elif normalizer == "unit_length":
                norm = math.sqrt(sum(value**2 for value in row.values()) + epsilon)
            for j, value in row.items():
                a[n, i, j] = value / norm
    y = []
    for p in range(parts):
        y.append(np.einsum("blm,lm,bme->ble", a, f[p], v[:, p]))
        mask = (input_mask[:, :, None] == input_mask[:, None, :]) & (input_mask[:, None, :] > 0)
        if normalizer == "part_row_sum":
            y[p] /= (a * f[p]).sum(-1, keepdims=True) + part_epsilon
        elif normalizer == "part_length":
            y[p] /= np.sqrt((mask * f[p] ** 2).sum(-1, keepdims=True) + part_epsilon)
        if "gp" in weights:
            y[p] *= 2 * sigmoid(x @ weights["gp"] + weights["bgp"])[:, :, p : p + 1]
    y = np.concatenate(y, axis=-1)
    if "go" in weights:
        y *= 2 * sigmoid(x @ weights["go"] + weights["bgo"])
    if "wo" in weights:
        y = y @ weights["wo"] + weights["bo"]
    return y, a


def layer_norm(x, gamma, beta, epsilon=1e-12):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def block(h, weights, input_mask, f, norm_first, **choices):
    """One encoder block, [B, L, D]."""

    def norm1(z):
        return layer_norm(z, weights["g1"], weights["b1"])

    def norm2(z):
        return layer_norm(z, weights["g2"], weights["b2"])

    def feed_forward(z):
        return gelu(z @ weights["w1"] + weights["c1"]) @ weights["w2"] + weights["c2"]

    if norm_first:
        h = h + attention(norm1(h), weights, input_mask, f, **choices)[0]
        return h + feed_forward(norm2(h))
    h = norm1(h + attention(h, weights, input_mask, f, **choices)[0])
    return norm2(h + feed_forward(h))
