"""Settings that nobody gives: they suit the data and the encoder, and a run keeps them."""

import pytest

from shatter_tf.errors import UserError
from shatter_tf.tasks import recipe
from shatter_tf.training import run_dir, settings
from shatter_tf.training.session import Session

RATE = "trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate"
TINY = "task.model.encoder.shatter"
SMALL = f"{TINY}.hidden_size=12,{TINY}.num_layers=1,{TINY}.num_parts=3,{TINY}.intermediate_size=10"


@pytest.fixture
def corpus(write_corpus, random_documents):
    return write_corpus(random_documents(shards=2, per_shard=30))


@pytest.fixture
def labelled(tmp_path, vocab_file):
    """Returns a function that writes rows, and resolves a run that learns them."""

    def resolve(rows, **flags):
        for split in ("train", "dev"):
            lines = [f"the cat sat {i}\tlabel{i % 2}\n" for i in range(rows)]
            (tmp_path / f"{split}.tsv").write_text("".join(lines))
        flags["params_override"] = ",".join(
            filter(None, [f"task.train_data.vocab_file={vocab_file},{SMALL}", flags.get("params_override")])
        )
        return settings.resolve("shatter/classify", data_dir=str(tmp_path), **flags)

    return resolve


def rate(params):
    return params.trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate


def test_rates_fall_with_the_width():
    for rule in (recipe.fine_tuning_rate, recipe.pretraining_rate):
        rates = [rule(size) for size in (32, 64, 128, 200, 256, 384, 512, 768, 1024)]
        assert rates == sorted(rates, reverse=True)
        assert 0 < rates[-1] < rates[0] <= 4e-3


def test_steps_grow_with_the_rows():
    steps = [recipe.fine_tuning_steps(rows, 32) for rows in (1, 10, 100, 1_000, 10_000, 100_000)]
    assert steps == sorted(steps)
    assert steps[0] == 20
    assert steps[-1] == 9_380  # three passes


@pytest.mark.parametrize(("rows", "batch_size"), [(2, 2), (21, 16), (32, 32), (100, 32)])
def test_a_batch_is_never_larger_than_the_data(labelled, rows, batch_size):
    params = labelled(rows).params
    assert params.task.train_data.global_batch_size == batch_size
    assert params.task.validation_data.global_batch_size == batch_size
    assert params.trainer.train_steps == recipe.fine_tuning_steps(rows, batch_size)
    assert params.task.model.use_encoder_pooler
    assert params.task.model.encoder.shatter.dropout_rate == 0.3


def test_a_batch_that_was_asked_for_is_refused_if_it_is_larger(labelled):
    with pytest.raises(UserError, match="21 training rows are fewer than global_batch_size=32"):
        labelled(21, batch_size=32)


def test_flags_are_settings(labelled):
    flags = dict(learning_rate=2e-3, train_steps=7, batch_size=4, seq_length=16, seed=5)
    run = labelled(20, **flags)
    data = run.params.task.train_data
    assert (rate(run.params), run.params.trainer.train_steps) == (2e-3, 7)
    assert (data.global_batch_size, data.seq_length, data.seed) == (4, 16, 5)
    assert run.params.task.validation_data.seq_length == 16
    assert not run.chosen.keys() & {"learning_rate", "train_steps", "global_batch_size"}


def test_flags_and_overrides_may_not_differ(labelled):
    assert labelled(20, train_steps=7, params_override="trainer.train_steps=7").params.trainer.train_steps == 7
    with pytest.raises(UserError, match="train_steps=7, and params_override has trainer.train_steps: give one"):
        labelled(20, train_steps=7, params_override="trainer.train_steps=8")


def test_the_learning_rate_is_that_of_the_schedule(labelled):
    schedule = "trainer.optimizer_config.learning_rate"
    run = labelled(20, learning_rate=5e-3, params_override=f"{schedule}.type=cosine")
    assert run.params.trainer.optimizer_config.learning_rate.cosine.initial_learning_rate == 5e-3
    stepwise = f"{schedule}.type=stepwise,{schedule}.stepwise.boundaries=[1],{schedule}.stepwise.values=[1e-3,1e-4]"
    assert "learning_rate" not in labelled(20, params_override=stepwise).chosen
    with pytest.raises(UserError, match="learning_rate: a stepwise schedule has more than one"):
        labelled(20, learning_rate=5e-3, params_override=stepwise)


def test_pretraining_without_sizes_takes_those_that_suit_the_corpus(corpus):
    run = settings.resolve("shatter/pretrain", data_dir=corpus)
    encoder = run.params.task.model.encoder.shatter
    tiny = settings.resolve("shatter/pretrain", data_dir=corpus, config="tiny")
    assert run.chosen["encoder"] == "pretrain_tiny"
    assert "encoder" not in tiny.chosen
    assert (encoder.hidden_size, encoder.num_layers) == (128, 2)
    assert run.params.as_dict() == tiny.params.as_dict()

    bert = settings.resolve("shatter/pretrain", data_dir=corpus, params_override="task.model.encoder.type=bert")
    assert bert.params.task.model.encoder.bert.hidden_size == 128
    assert bert.params.task.model.encoder.bert.dropout_rate == 0.0

    own = settings.resolve("shatter/pretrain", data_dir=corpus, params_override=SMALL).params
    assert own.task.model.encoder.shatter.hidden_size == 12
    assert rate(own) == recipe.pretraining_rate(12)
    assert (own.task.train_data.mask_rate, own.task.validation_data.mask_rate) == (0.4, 0.15)


def test_a_config_has_a_name_or_a_path(corpus):
    with pytest.raises(UserError, match=r"no config 'tinny' \(did you mean tiny"):
        settings.resolve("shatter/pretrain", data_dir=corpus, config="tinny")
    with pytest.raises(UserError, match=r"config=tiny and config_file=a.yaml: give one"):
        settings.resolve("shatter/pretrain", data_dir=corpus, config="tiny", config_file="a.yaml")


def test_a_run_keeps_what_was_chosen(labelled, tmp_path):
    run = labelled(20, train_steps=2)
    model_dir = str(tmp_path / "run")
    Session(run, model_dir).train(evaluate=False)

    more_rows = labelled(200, train_steps=2, model_dir=model_dir)
    assert more_rows.params.task.train_data.global_batch_size == 16
    assert not more_rows.chosen
    assert labelled(200, train_steps=2).params.task.train_data.global_batch_size == 32

    longer = labelled(20, train_steps=4, model_dir=model_dir).params
    assert longer.trainer.optimizer_config.learning_rate.polynomial.decay_steps == 4
    assert rate(longer) == rate(run_dir.read(model_dir).params)


def test_labels_alone_bring_their_own_vocabulary(tmp_path, capsys):
    """The vocabulary is that of the first start, also when rows are added."""

    def write(words):
        for split in ("train", "dev"):
            lines = [f"the {word} sat on {word}s\tlabel{i % 2}\n" for i, word in enumerate(words * 10)]
            (tmp_path / f"{split}.tsv").write_text("".join(lines))

    def resolve(**more):
        override = f"{SMALL},trainer.steps_per_loop=1"
        return settings.resolve("shatter/classify", data_dir=str(tmp_path), params_override=override, **more)

    write(["cat", "dog"])
    run = resolve(train_steps=2)
    assert {"cat", "dog", "sat", "##s"} <= set(run.vocabulary)
    assert run.vocabulary == resolve(train_steps=2).vocabulary
    assert run.params.task.model.encoder.shatter.vocab_size >= len(run.vocabulary)
    model_dir = str(tmp_path / "run")
    Session(run, model_dir).train(evaluate=False)

    write(["bird", "fish"])
    assert "bird" in resolve(train_steps=2).vocabulary
    again = resolve(train_steps=3, model_dir=model_dir)
    assert again.vocabulary == run.vocabulary
    assert Session(again, model_dir).train(evaluate=True)


def test_a_run_that_goes_on_says_what_changed_and_a_finished_one_changes_nothing(labelled, tmp_path, capsys):
    model_dir = str(tmp_path / "run")
    Session(labelled(20, train_steps=2, seed=3), model_dir).train(evaluate=False)
    before = run_dir.read(model_dir).params.as_dict()
    capsys.readouterr()

    finished = labelled(20, train_steps=2, seed=3, batch_size=4, model_dir=model_dir)
    assert "task.train_data.global_batch_size=4; so far it was 16" in capsys.readouterr().out
    Session(finished, model_dir).train(evaluate=False)
    assert "nothing to train: the run is at step 2" in capsys.readouterr().out
    assert run_dir.read(model_dir).params.as_dict() == before

    labelled(20, train_steps=2, seed=3, model_dir=model_dir)
    assert "so far" not in capsys.readouterr().out
