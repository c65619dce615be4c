"""Long inputs, read window by window by an encoder of short ones."""

import dataclasses

import tensorflow as tf

from shatter_tf.layers.pooling import mean_of_tokens

POOLINGS = ("mean", "max")


@dataclasses.dataclass(frozen=True)
class Windows:
    """How an encoder reads inputs [B, T] with T > L: as T / L windows of L tokens, which do not see each other.

    Source: ours, the simplest way to the price of short texts; docs/design.md.

    Attributes:
      length: L.
      pooling: makes one vector of a text: "mean" over the tokens of all windows, or "max" over the windows' own means.
    """

    length: int
    pooling: str = "mean"

    def fold(self, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns inputs [B, T, ...] as windows, [B T / L, L, ...]; unchanged where T is at most L.

        Example:
        >>> Windows(2).fold(dict(x=tf.constant([[1, 2, 3, 4], [5, 6, 0, 0]])))["x"].numpy().tolist()
        [[1, 2], [3, 4], [5, 6], [0, 0]]
        """

        def fold(t: tf.Tensor) -> tf.Tensor:
            if t.shape[1] is not None and t.shape[1] <= self.length:
                return t
            length = self.length if t.shape[1] is not None else tf.minimum(tf.shape(t)[1], self.length)
            return tf.reshape(t, [-1, length, *t.shape[2:]])

        return {name: fold(t) for name, t in inputs.items()}

    def unfold(self, h: tf.Tensor, input_mask: tf.Tensor) -> tf.Tensor:
        """Returns what stands for tokens of windows, [B T / L, L, D], as of inputs, [B, T, D], whose mask this is."""
        length = input_mask.shape[1] or tf.shape(input_mask)[1]
        return tf.reshape(h, [tf.shape(input_mask)[0], length, h.shape[-1]])

    def pool(self, of_windows: tf.Tensor, h: tf.Tensor, input_mask: tf.Tensor) -> tf.Tensor:
        """Returns one vector for each text, [B, D].

        Args:
          of_windows: a vector for each window, [B T / L, D].
          h: the tokens' vectors, unfolded, [B, T, D].
          input_mask: [B, T], 0 for padding.
        """
        if self.pooling == "mean":
            return mean_of_tokens(h, input_mask)
        windows = tf.reshape(of_windows, [tf.shape(h)[0], -1, h.shape[-1]])
        is_empty = tf.reduce_all(tf.reshape(input_mask, [tf.shape(h)[0], tf.shape(windows)[1], -1]) == 0, axis=-1)
        least = tf.where(is_empty[..., tf.newaxis], windows.dtype.min, windows)
        return tf.where(tf.reduce_all(is_empty, axis=1)[:, tf.newaxis], tf.zeros_like(h[:, 0]), tf.reduce_max(least, 1))
