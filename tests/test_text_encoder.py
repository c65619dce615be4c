"""Use from Python: vectors of strings from a run, fine-tuning with nothing but Keras, saving and loading."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from shatter_tf.data.vocabulary import SPECIAL_TOKENS
from shatter_tf.errors import UserError
from shatter_tf.serving.load import load_encoder, load_model, load_text_encoder
from shatter_tf.serving.text_encoder import TextEncoder
from shatter_tf.training import device, run_dir
from shatter_tf.training.session import Session

TEXTS = ["the cat sat", "", "a big dog ran very fast. " * 40, "стол 😀"]
SHATTER = dict(vocab_size=64, hidden_size=8, num_layers=1, num_parts=2, intermediate_size=8)
BERT = dict(vocab_size=64, hidden_size=8, num_layers=1, num_attention_heads=2, intermediate_size=8)
VOCABULARY = [*SPECIAL_TOKENS, "good", "bad", "film", "##s"]


def test_a_run_and_its_export_give_the_same_vectors(exported, capsys):
    layer = load_text_encoder(str(exported["pretrain"]), dtype="float32")
    assert "new: 0 variables" in capsys.readouterr().out
    export = tf.saved_model.load(f"{exported['pretrain_export']}/1")
    texts = tf.constant(TEXTS)
    np.testing.assert_allclose(layer(texts), export.signatures["embed"](text=texts)["embedding"], atol=1e-5)
    encoder = load_encoder(str(exported["pretrain"]))
    inputs = layer.tokenizer.pad(layer.tokenizer.encode(texts, None, 128))
    np.testing.assert_array_equal(encoder(inputs)["sequence_output"], layer.encoder(inputs)["sequence_output"])


@pytest.mark.parametrize("instructions", ["AMX", None])
def test_it_computes_as_is_fastest_here(exported, monkeypatch, instructions):
    monkeypatch.setattr(device, "bfloat16_instructions", lambda: instructions)
    fast = load_text_encoder(str(exported["pretrain"]))
    exact = load_text_encoder(str(exported["pretrain"]), dtype="float32")
    assert fast.compute_dtype == ("bfloat16" if instructions else "float32")
    vectors = fast(tf.constant(TEXTS))
    assert vectors.dtype == tf.float32
    np.testing.assert_allclose(vectors, exact(tf.constant(TEXTS)), atol=0.05)


@pytest.mark.parametrize(
    "choices", [{"type": "bert", "bert.pooling": "first_token"}, {"shatter.pooling": "first_token"}]
)
def test_an_encoder_of_any_family_is_loaded_with_its_weights_and_a_pooler_to_train(pretrain, tmp_path, choices):
    choices |= {f"bert.{name}": size for name, size in BERT.items()}
    run = pretrain(more=",".join(f"task.model.encoder.{key}={value}" for key, value in choices.items()))
    run_dir.write(str(tmp_path), run)
    Session(run, str(tmp_path)).saver.save()
    trained = load_model(run, str(tmp_path))[0].encoder_network
    assert not trained.pooler_layer.trainable

    encoder = load_encoder(str(tmp_path))
    assert type(encoder) is type(trained)
    assert encoder.pooler_layer.trainable
    inputs = {name: tf.constant([[2, 7, 9, 3]]) for name in ("input_word_ids", "input_mask")}
    inputs["input_type_ids"] = tf.zeros([1, 4], tf.int32)
    np.testing.assert_array_equal(encoder(inputs)["sequence_output"], trained(inputs)["sequence_output"])


def test_settings_of_older_versions_are_read():
    layer = TextEncoder(dict(type="any", any=SHATTER), VOCABULARY, lower_case=True)
    assert layer.get_config()["encoder"]["type"] == "shatter"


@pytest.mark.parametrize("encoder", [dict(type="shatter", shatter=SHATTER), dict(type="bert", bert=BERT)])
@pytest.mark.parametrize("file", ["model.keras", "model"])
def test_keras_fits_saves_and_loads_it(tmp_path, encoder, file):
    inputs = tf_keras.Input([], dtype=tf.string)
    layer = TextEncoder(encoder, VOCABULARY, lower_case=True, seq_length=16)
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(2)(layer(inputs)))
    texts = np.array(["good film", "bad film", "a good good film", "films bad"] * 8, object)
    labels = np.array([1, 0, 1, 0] * 8)
    model.compile(
        tf_keras.optimizers.Adam(0.02),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(tf.data.Dataset.from_tensor_slices((texts, labels)).batch(8), epochs=15, verbose=0)
    assert model.evaluate(texts, labels, verbose=0)[1] == 1.0
    model.save(tmp_path / file)
    loaded = tf_keras.models.load_model(tmp_path / file)
    np.testing.assert_allclose(loaded.predict(texts, verbose=0), model.predict(texts, verbose=0), atol=1e-6)


def test_long_inputs_are_attended_to_in_blocks_and_give_the_same_vectors():
    def vectors(**more):
        layer = TextEncoder(
            dict(type="shatter", shatter={**SHATTER, **more}), VOCABULARY, lower_case=True, seq_length=16
        )
        tf_keras.utils.set_random_seed(0)
        layer.set_weights([np.random.normal(size=weights.shape) for weights in layer.get_weights()])
        graph = tf.function(layer.__call__).get_concrete_function(tf.TensorSpec([None], tf.string)).graph
        return layer(tf.constant(TEXTS)), [t.shape for op in graph.get_operations() for t in op.outputs]

    (whole, shapes), (in_blocks, block_shapes) = vectors(), vectors(query_block_size=4)
    np.testing.assert_allclose(whole, in_blocks, atol=1e-5)
    assert not any(shape.rank == 2 and shape[-1] == 16 for shape in shapes)  # padded to the longest
    assert any(shape.rank == 2 and shape[-1] == 16 for shape in block_shapes)
    assert not any(shape[-2:] == [16, 16] for shape in block_shapes if (shape.rank or 0) > 1)


def test_columns_of_strings_are_as_good_as_rows():
    layer = TextEncoder(dict(type="shatter", shatter=SHATTER), VOCABULARY, lower_case=True, seq_length=16)
    texts = tf.constant(["good film bad", "bad", "film film film"])
    column = tf_keras.Input((1,), dtype=tf.string)
    expected = layer(texts).numpy()
    np.testing.assert_allclose(tf_keras.Model(column, layer(column))(texts[:, tf.newaxis]), expected, atol=1e-6)
    np.testing.assert_array_equal(layer(texts[:, tf.newaxis]), expected)
    for wrong in (texts[0], tf.reshape(texts, [1, 3])):
        with pytest.raises(ValueError, match=r"takes strings \[B\] or \[B, 1\]"):
            layer(wrong)


@pytest.mark.parametrize("encoder", [dict(type="shatter", shatter=SHATTER), dict(type="bert", bert=BERT)])
def test_its_encoder_computes_in_the_layers_precision_wherever_it_is_rebuilt(encoder):
    layer = TextEncoder(encoder, VOCABULARY, lower_case=True, dtype="mixed_bfloat16")
    for one in (layer, TextEncoder.from_config(layer.get_config())):
        assert one.encoder.compute_dtype == "bfloat16"
        assert one.encoder.transformer_layers[0].compute_dtype == "bfloat16"


def test_vectors_are_float32_in_mixed_precision():
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    layer = TextEncoder(dict(type="shatter", shatter=SHATTER), VOCABULARY, lower_case=True)
    tf_keras.mixed_precision.set_global_policy("float32")
    assert layer.encoder.compute_dtype == "bfloat16"
    assert layer(tf.constant(TEXTS)).dtype == tf.float32


def test_settings_come_back():
    layer = TextEncoder(dict(type="shatter", shatter=SHATTER), VOCABULARY, lower_case=False, seq_length=17, name="text")
    clone = TextEncoder.from_config(layer.get_config())
    assert clone.get_config() == layer.get_config()
    clone(tf.constant(["x"]))
    layer(tf.constant(["x"]))
    clone.set_weights(layer.get_weights())
    texts = tf.constant(["good Film", "bad"])
    np.testing.assert_array_equal(layer(texts), clone(texts))


def test_refusals(exported, tmp_path):
    with pytest.raises(UserError, match="seq_length=513 is longer than the encoder's 512 positions"):
        TextEncoder(dict(type="shatter", shatter=SHATTER), VOCABULARY, lower_case=True, seq_length=513)
    with pytest.raises(UserError, match="seq_length=2: two special tokens leave no room for text"):
        TextEncoder(dict(type="shatter", shatter=SHATTER), VOCABULARY, lower_case=True, seq_length=2)
    for load in (load_encoder, load_text_encoder):
        with pytest.raises(UserError, match=f"model_dir={tmp_path}: not a training directory"):
            load(str(tmp_path))
    shutil.copytree(exported["pretrain"], tmp_path / "run", ignore=shutil.ignore_patterns("ckpt*", "best"))
    for load in (load_encoder, load_text_encoder):
        with pytest.raises(UserError, match=f"model_dir={tmp_path}/run: no checkpoint"):
            load(str(tmp_path / "run"))
    with pytest.raises(KeyError, match="num_heads"):
        TextEncoder(dict(type="shatter", shatter=dict(SHATTER, num_heads=2)), VOCABULARY, lower_case=True)
