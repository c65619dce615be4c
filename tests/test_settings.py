"""From flags and files to settings: what wins, what is derived, and what is refused."""

import pytest
from tiny import tiny_override

from shatter_tf.data import labelled
from shatter_tf.errors import UserError
from shatter_tf.training import overrides, settings

ENCODER, OPTIMIZER = "task.model.encoder.shatter", "trainer.optimizer_config.optimizer"


def test_unset_schedule_and_intervals_follow_from_train_steps(pretrain):
    params = pretrain("trainer.train_steps=5000").params
    trainer, optimizer = params.trainer, params.trainer.optimizer_config
    assert optimizer.learning_rate.polynomial.decay_steps == 5000
    assert optimizer.warmup.polynomial.warmup_steps == 500
    assert (trainer.steps_per_loop, trainer.validation_interval, trainer.checkpoint_interval) == (100, 1000, 1000)
    params = pretrain(
        "trainer.train_steps=5000,trainer.steps_per_loop=30,trainer.checkpoint_interval=60,"
        "trainer.optimizer_config.learning_rate.polynomial.decay_steps=7"
    ).params
    assert params.trainer.optimizer_config.learning_rate.polynomial.decay_steps == 7
    assert (params.trainer.steps_per_loop, params.trainer.checkpoint_interval) == (30, 60)
    assert params.trainer.validation_interval % 30 == 0


@pytest.mark.parametrize(
    ("decay_steps", "end", "warned"), [(7, 0.0, True), (7, 1e-5, False), (20, 0.0, False), (30, 0.0, False)]
)
def test_steps_without_a_learning_rate_are_warned_of(pretrain, capsys, decay_steps, end, warned):
    rate = "trainer.optimizer_config.learning_rate.polynomial"
    pretrain(f"trainer.train_steps=20,{rate}.decay_steps={decay_steps},{rate}.end_learning_rate={end}")
    said = f"warning: the learning rate is 0 from step {decay_steps} on, but trainer.train_steps=20; leave out"
    assert (said in capsys.readouterr().err) == warned


def test_whole_numbers_are_taken_for_floats(pretrain):
    run = pretrain(f"{OPTIMIZER}.adamw.weight_decay_rate=1,{ENCODER}.squashing_scale=2,trainer.train_steps=3")
    assert type(run.params.trainer.optimizer_config.optimizer.adamw.weight_decay_rate) is float
    assert type(run.params.task.model.encoder.shatter.squashing_scale) is float
    assert type(run.params.trainer.train_steps) is int


@pytest.mark.parametrize("steps", [1, 2, 3, 19, 20, 21, 12345])
def test_derived_intervals_fit_each_other(pretrain, steps):
    trainer = pretrain(f"trainer.train_steps={steps}").params.trainer
    assert trainer.validation_interval % trainer.steps_per_loop == 0
    assert trainer.checkpoint_interval % trainer.steps_per_loop == 0


def test_validation_follows_training_unless_set(pretrain):
    task = pretrain(
        "task.train_data.seq_length=24,task.train_data.mask_rate=0.3,task.validation_data.mask_rate=0.2"
    ).params.task
    assert task.validation_data.seq_length == 24
    assert task.validation_data.global_batch_size == task.train_data.global_batch_size == 4
    assert (task.train_data.mask_rate, task.validation_data.mask_rate) == (0.3, 0.2)


def test_longer_rows_of_validation_are_not_masked_less(pretrain):
    more = "task.train_data.max_predictions_per_seq=3"
    assert pretrain(more).params.task.validation_data.max_predictions_per_seq == 3
    more += ",task.validation_data.seq_length=32"
    assert pretrain(more).params.task.validation_data.max_predictions_per_seq == 0


def test_files_then_flags(pretrain, tmp_path, write_corpus, random_documents):
    path = tmp_path / "a.yaml"
    path.write_text(
        "trainer:\n  train_steps: 7\n  optimizer_config:\n    learning_rate:\n      polynomial:\n"
        "        initial_learning_rate: 1e-3\ntask:\n  train_data:\n    seed: 3\n"
    )
    run = settings.resolve(
        "shatter/pretrain",
        config_file=str(path),
        data_dir=write_corpus(random_documents(1, 9)),
        params_override=tiny_override() + ",trainer.train_steps=8,task.train_data.global_batch_size=2",
    )
    assert run.params.trainer.train_steps == 8
    assert run.params.task.train_data.seed == 3
    assert run.params.trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate == 1e-3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.train_data.seq_len=8", r"no setting task.train_data.seq_len \(did you mean seq_length"),
        (
            "trainer.learning_rate=8",
            r"no setting trainer.learning_rate \(did you mean .*polynomial.initial_learning_rate, or learning_rate\?",
        ),
        ("task.batch_size=8", r"did you mean task.train_data.global_batch_size, or batch_size\?"),
        ("dropout=0.1", r"did you mean task.model.encoder.shatter.dropout_rate\?"),
        ("tsk.train_data.seq_length=8", r"no setting tsk \(did you mean task"),
        ("task.validation_data=5", "task.validation_data holds settings of its own"),
        ("trainer.optimizer_config.ema.decoy=5", r"no setting trainer.optimizer_config.ema.decoy \(there are "),
        (
            "trainer.train_stops=5,runtime.enable_xla=7",
            r"enable_xla=7 is not true.*; .*no setting trainer.train_stops",
        ),
        ("trainer.train_steps.more=5", "trainer.train_steps has no settings of its own"),
        ("trainer.optimizer_config.warmup.type=linar", "warmup.type='linar': there are linear, polynomial"),
        ("trainer.train_steps=5.5", "trainer.train_steps=5.5 is not a whole number"),
        ("trainer.train_tf_function=false", "trainer.train_tf_function=False: has no effect here"),
        ("runtime.run_eagerly=true", "runtime.run_eagerly=True: has no effect here"),
        ("task.train_data.is_training=false", "task.train_data.is_training=False: has no effect here"),
        ("task.validation_data.is_training=true", "task.validation_data.is_training=True: has no effect here"),
        ("task.hub_module_url=x,task.init_cls_pooler=true", "no setting task.hub_module_url"),
        ("task.scale_loss=true", "no setting task.scale_loss"),
        ("task.model.mlm_output_weights_use_proj=true", "use_proj=True: has no effect here"),
        ("task.train_data.use_next_sentence_label=true", "next_sentence_label=True: the data has no such labels"),
        (f"{ENCODER}.output_range=4", "shatter.output_range=4 is for encoders in Python only"),
        (f"{ENCODER}.return_attention_scores=true", "shatter.return_attention_scores=True is for encoders in Python"),
        (f"task.model.encoder.type=bert,{ENCODER}.num_parts=0", "bert.num_attention_heads=0 is not positive"),
        ("task.init_checkpoint=nowhere", "task.init_checkpoint=nowhere: give init_checkpoint"),
        ("runtime.tpu=local", "runtime.tpu=local, but runtime.distribution_strategy=mirrored; use tpu"),
        ("runtime.loss_scale=dynamic", "runtime.loss_scale=dynamic is for runtime.mixed_precision_dtype=float16"),
        ("runtime.loss_scale=8,runtime.mixed_precision_dtype=float16", "runtime.loss_scale=8.0: .* use dynamic"),
        (
            "runtime.distribution_strategy=tpu,runtime.tpu=local,runtime.mixed_precision_dtype=float16",
            "runtime.mixed_precision_dtype=float16: TPUs have bfloat16; use that",
        ),
        (
            "runtime.distribution_strategy=tpu,runtime.tpu=pod,task.train_data.enable_tf_data_service=true",
            "runtime.tpu=pod: its hosts have only TensorFlow, and cannot take batches of a tf.data service",
        ),
        ("task.train_data.seed=-1", r"task.train_data.seed=-1 is not in \[0, 2\^32\)"),
        ("trainer.validation_steps=0", "trainer.validation_steps=0: use -1 for all"),
        ("trainer.best_checkpoint_metric_comp=hihger", "best_checkpoint_metric_comp=hihger: use higher, lower"),
        ("trainer.optimizer_config.learning_rate.type=stepwise", "no adamw with a stepwise learning rate follows"),
        ("trainer.optimizer_config.learning_rate.type=null", "with a None learning rate .* must be spec"),
        ("task.model.cls_heads=[5]", "task.model.cls_heads: the data has no labels for such a head"),
        ("runtime.enable_xla=7", "runtime.enable_xla=7 is not true, false or auto"),
        ("task.train_data.mask_rate=1.5", "task.train_data.mask_rate=1.5 is not between 0 and 1"),
        ("task.train_data.global_batch_size=0", "global_batch_size=0 is not positive"),
        ("trainer.optimizer_config.learning_rate.polynomial.decay_steps=0", "polynomial.decay_steps=0 is too few"),
        (f"{OPTIMIZER}.adamw.gradient_clip_norm=-1", "adamw.gradient_clip_norm=-1.0 is negative"),
        (f"{OPTIMIZER}.adamw.global_clipnorm=-0.5", "adamw.global_clipnorm=-0.5 is negative"),
        (f"{OPTIMIZER}.adamw.clipnorm=1,{OPTIMIZER}.adamw.global_clipnorm=1", "no adamw with .*Cannot accept both"),
        (f"{OPTIMIZER}.adamw.beta_2=1", r"adamw.beta_2=1.0 is not in \[0, 1\)"),
        (f"{OPTIMIZER}.adamw.epsilon=.nan", "adamw.epsilon=nan is not a number"),
        (
            "trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate=-1e-3",
            "polynomial.initial_learning_rate=-0.001 is negative",
        ),
        ("trainer.optimizer_config.warmup.polynomial.warmup_steps=-1", "polynomial.warmup_steps=-1 is negative"),
        (
            "trainer.optimizer_config.optimizer.type=adamw_experimental",
            "optimizer.type=adamw_experimental: use adamw, adam",
        ),
        ("task.train_data.enable_tf_data_service=true", "tf_data_service_address=None: no dispatcher .* answers"),
        (
            "task.train_data.enable_tf_data_service=true,task.train_data.tf_data_service_address=grpc://localhost:9",
            "grpc://localhost:9: no dispatcher of a tf.data service answers.*refused",
        ),
        ("task.validation_data.enable_tf_data_service=true", "validation reads each row once, on this machine"),
        ('task.train_data.input_path="\\ud800"', "params_override=.*surrogates not allowed"),
        ("trainer.accumulation_steps=0", "trainer.accumulation_steps=0 is not positive"),
        ("runtime.mixed_precision_dtype=float8", "mixed_precision_dtype=float8: use auto, float32, bfloat16, float16"),
        ("runtime.distribution_strategy=mirorred", "did you mean mirrored"),
        ("task.model.encoder.shatter.hidden_activation=glue", "hidden_activation=glue: no such activation"),
        ("trainer.optimizer_config.warmup.polynomial.name=é", "warmup.polynomial.name=é: TensorFlow takes letters"),
        (f"{OPTIMIZER}.adamw.name=é", "optimizer.adamw.name=é: TensorFlow takes letters"),
        ("task.model.mlm_activation=glue", "task.model.mlm_activation=glue: no such activation; try gelu"),
        (
            "trainer.train_steps=0,task.model.encoder.shatter.dropout_rate=2",
            "dropout_rate=2.* is not in .*train_steps=0",
        ),
    ],
)
def test_refused(pretrain, override, message):
    with pytest.raises(UserError, match=message):
        pretrain(override)


def assert_refused(messages, experiment, **flags):
    with pytest.raises(UserError) as refusal:
        settings.resolve(experiment, **flags)
    for message in messages:
        assert message in str(refusal.value), str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_files_settings_and_devices_are_refused_at_once(tmp_path):
    (tmp_path / "train.tsv").write_text("the cat\n")
    override = f"{ENCODER}.dropout_rate=2,trainer.train_steps=0,runtime.num_gpus=99,task.train_data.vocab_file=nowhere"
    assert_refused(
        [
            "train.tsv:1: 1 column; expected",
            "nowhere: no such vocabulary file",
            f"{ENCODER}.dropout_rate=2.0 is not in [0, 1)",
            "trainer.train_steps=0 is not positive",
            "runtime.num_gpus=99, but this machine has 0",
        ],
        "shatter/classify",
        data_dir=str(tmp_path),
        params_override=override,
    )


def test_what_the_data_says_is_refused_at_once(tmp_path, vocab_file):
    (tmp_path / "train.tsv").write_text("the cat\t1\nthe dog\t2\n")
    (tmp_path / "dev.tsv").write_text("the cat\t3\n")
    override = "task.train_data.global_batch_size=3,task.model.num_classes=5,trainer.accumulation_steps=2"
    assert_refused(
        [
            "dev.tsv:1: the label '3' is not among the training labels",
            "2 training rows are fewer than global_batch_size=3",
            "task.model.num_classes=5, but the data has 2 labels",
            f"model_dir={tmp_path}: not empty, and not a training directory",
            "trainer.best_checkpoint_eval_metric=los: use loss, cls_accuracy, macro_f1 (did you mean loss?)",
            "task.train_data.global_batch_size=3 cannot be shared by 1 replica in 2 parts each",
        ],
        "shatter/classify",
        data_dir=str(tmp_path),
        model_dir=str(tmp_path),
        params_override=f"{override},trainer.best_checkpoint_eval_metric=los,task.train_data.vocab_file={vocab_file}",
    )


def test_a_checkpoint_that_is_none_is_refused_with_the_settings(tmp_path):
    assert_refused(
        [f"init_checkpoint={tmp_path}: not a training directory", "trainer.train_steps=-1 is not positive"],
        "shatter/answer",
        init_checkpoint=str(tmp_path),
        params_override="trainer.train_steps=-1",
    )


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        ("shatter/pretrain", "no corpus: give data_dir"),
        ("shatter/classify", "no labelled text: give data_dir"),
        ("shatter/tag", "no tagged sentences: give data_dir"),
        ("shatter/answer", "no questions: give data_dir"),
    ],
)
def test_without_data_the_settings_are_checked_all_the_same(experiment, message, vocab_file):
    override = f"{ENCODER}.num_layers=0" + f",task.train_data.vocab_file={vocab_file}" * (experiment[-8:] != "pretrain")
    assert_refused([message, f"{ENCODER}.num_layers=0 is not positive"], experiment, params_override=override)


@pytest.mark.parametrize(
    ("override", "comparison"),
    [
        ("", "higher"),
        ("trainer.best_checkpoint_eval_metric=loss", "lower"),
        ("trainer.best_checkpoint_eval_metric=loss,trainer.best_checkpoint_metric_comp=higher", "higher"),
    ],
)
def test_the_best_loss_is_the_lowest(pretrain, override, comparison):
    assert pretrain(override).params.trainer.best_checkpoint_metric_comp == comparison


def test_a_file_to_validate_on_wins_over_the_dataset_of_training(classify, tmp_path, vocab_file, monkeypatch):
    rows = classify().params.task.validation_data.input_path
    override = f"task.train_data.tfds_name=topics,task.train_data.vocab_file={vocab_file}"
    override += ",task.train_data.global_batch_size=4"
    monkeypatch.setattr(labelled, "read_tfds", lambda params: labelled.read_rows(rows))
    task = settings.resolve(
        "shatter/classify", params_override=f"{override},task.validation_data.input_path={rows}"
    ).params.task
    assert (task.train_data.tfds_name, task.validation_data.tfds_name) == ("topics", "")
    assert (task.train_data.tfds_split, task.validation_data.tfds_split) == ("train", "")
    with pytest.raises(UserError, match="task.train_data.input_path=.*tfds_name=topics: only one is read"):
        settings.resolve("shatter/classify", params_override=f"{override},task.train_data.input_path={rows}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "task.metric_type=matthews",
            r"use accuracy or f1 or matthews_corrcoef or macro_f1 or micro_f1 \(did you mean matthews_corrcoef\?\)",
        ),
        ("task.metric_type=pearson_spearman_corr", "use accuracy or f1 or matthews_corrcoef"),
        ("task.metric_type=f1", "task.metric_type=f1 is of two labels, but the data has 3"),
        ("task.model.num_classes=2", "num_classes=2, but the data has 3 labels"),
        ("runtime.distribution_strategy=tpu,runtime.tpu=pod", "runtime.tpu=pod: its hosts .* cannot read text; fine-"),
        ("task.train_data.labels=[0,1]", r"^labels=\[0, 1\]: 0 is not text; put quotes around it"),
        ("task.train_data.labels=[label0,no]", r"^labels=\['label0', False\]: False is not text; put quotes around it"),
        ("task.train_data.labels=[label0,label1,label0]", "^labels=.*: 'label0' occurs twice"),
        ("task.train_data.enable_tf_data_service=true", "train_data.enable_tf_data_service is for pretraining"),
        ("task.validation_data.vocab_file=''", "task.validation_data.vocab_file= is not that of training, "),
        (
            "task.validation_data.lower_case=false",
            "task.validation_data.lower_case=False is not that of training, True",
        ),
    ],
)
def test_classification_refuses(classify, override, message):
    with pytest.raises(UserError, match=message):
        classify(more=override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.metric_type=accuracy", "task.metric_type=accuracy: use pearson_spearman_corr"),
        ("task.train_data.labels=[1, 2]", "regression is to numbers, which have no names"),
        ("task.model.num_classes=2", "num_classes=2, but the data has a number for each row"),
    ],
)
def test_regression_refuses(regress, override, message):
    with pytest.raises(UserError, match=message):
        regress(override)


@pytest.mark.parametrize("label", ["high", "nan", "-inf", "1e39", "1,5"])
def test_labels_that_are_no_numbers_are_refused(fine_tune, label):
    with pytest.raises(UserError, match=rf"dev.tsv:2: the label .*{label}"):
        fine_tune("shatter/regress", ["a cat\t1", "a dog\t-2.5e-1"] * 2, ["a cat\t1", f"a dog\t{label}"])


@pytest.mark.parametrize(
    ("said", "shatter", "bert"),
    [("", "squared_relu", "gelu"), (",task.model.encoder.shatter.hidden_activation=relu", "relu", "relu")],
)
def test_bert_keeps_its_activation_unless_another_is_asked_for(pretrain, said, shatter, bert):
    encoder = pretrain("task.model.encoder.type=bert" + said).params.task.model.encoder
    assert (encoder.shatter.hidden_activation, encoder.bert.hidden_activation) == (shatter, bert)


@pytest.mark.parametrize(
    "text", ['a: "\\ud800"\n', "a: [1\n", "just text\n", "!!python/object/apply:os.system ['true']\n", ""]
)
def test_config_files_that_are_none(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="a.yaml: "):
        overrides.read_config_file(str(path))
