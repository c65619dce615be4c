"""Which tokens of a row are hidden, and what stands in their place."""

import tensorflow as tf


def mask_row(
    ids: tf.Tensor,
    packs: tf.Tensor,
    seed: tf.Tensor,
    *,
    mask_rate: float,
    max_predictions: int,
    mask_id: int,
    ordinary_ids: tf.Tensor,
    is_ordinary: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Chooses the tokens of a row to predict, and hides them: 80 % [MASK], 10 % a random wordpiece, 10 % unchanged.

    Special tokens and padding are never chosen or inserted. The number chosen is `mask_rate` of the row's ordinary
    tokens, at least one if there is any and at most `max_predictions`; places left over have weight 0.

    Args:
      ids, packs: int32 [L].
      seed: [2]; the result is a function of the row and this.
      mask_rate, max_predictions, mask_id: as their names say; K = max_predictions.
      ordinary_ids: int32 [number of wordpieces that are not special].
      is_ordinary: bool [vocab_size].

    Returns:
      What Model Garden's MaskedLMTask takes: `input_word_ids`, `input_mask` (pack numbers), `input_type_ids` int32 [L];
      `masked_lm_positions`, `masked_lm_ids` int32 [K]; `masked_lm_weights` float32 [K].

    Source: BERT (Devlin et al. 2019, arXiv 1810.04805), section 3.1, drawn anew at every visit (RoBERTa).
    """
    choice_seed, action_seed, token_seed = tf.unstack(tf.random.split(seed, 3))
    candidates = tf.gather(is_ordinary, ids)
    priority = tf.where(candidates, tf.random.stateless_uniform(tf.shape(ids), choice_seed), -1.0)
    positions = tf.math.top_k(priority, max_predictions).indices
    available = tf.reduce_sum(tf.cast(candidates, tf.int32))
    wanted = tf.cast(tf.round(mask_rate * tf.cast(available, tf.float32)), tf.int32)
    number = tf.minimum(tf.minimum(tf.maximum(wanted, 1), available), max_predictions)
    chosen = tf.range(max_predictions) < number

    labels = tf.gather(ids, positions)
    action = tf.random.stateless_uniform([max_predictions], action_seed)
    random_ids = tf.gather(
        ordinary_ids,
        tf.random.stateless_uniform([max_predictions], token_seed, 0, tf.size(ordinary_ids), dtype=tf.int32),
    )
    hidden = tf.where(action < 0.8, mask_id, tf.where(action < 0.9, random_ids, labels))
    hidden = tf.where(chosen, hidden, labels)
    return dict(
        input_word_ids=tf.tensor_scatter_nd_update(ids, positions[:, tf.newaxis], hidden),
        input_mask=packs,
        input_type_ids=tf.zeros_like(ids),
        masked_lm_positions=tf.where(chosen, positions, 0),
        masked_lm_ids=tf.where(chosen, labels, 0),
        masked_lm_weights=tf.cast(chosen, tf.float32),
    )
