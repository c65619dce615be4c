"""The experiments by name: shatter/pretrain, and those that fine-tune.

Settings left at None or 0 here are derived from others when a run starts; see settings.py.
"""

import dataclasses

from official.core import config_definitions as cfg
from official.core import exp_factory
from official.modeling import optimization

from shatter_tf.tasks import ClassifyConfig, PretrainConfig, QuestionAnsweringConfig, RegressConfig, TagConfig

# Patterns in the names of variables that weight decay leaves alone: norms, biases, and what belongs to the partition.
NO_WEIGHT_DECAY = ["layer_norm", "LayerNorm", "bias"]


@dataclasses.dataclass
class TrainerConfig(cfg.TrainerConfig):
    """Model Garden's trainer settings, and two of ours.

    Attributes:
      accumulation_steps: parts in which every replica processes its share of a batch, one after the other, to save
        memory; the step is that of the whole batch.
      max_skipped_steps: steps whose loss or gradients are not finite are skipped; so many in a row end the run.
    """

    accumulation_steps: int = 1
    max_skipped_steps: int = 20


def _experiment(task: cfg.TaskConfig, learning_rate: float, train_steps: int) -> cfg.ExperimentConfig:
    task.train_data.global_batch_size, task.validation_data.global_batch_size = 32, 0
    return cfg.ExperimentConfig(
        task=task,
        runtime=cfg.RuntimeConfig(enable_xla=True),
        trainer=TrainerConfig(
            train_steps=train_steps,
            steps_per_loop=0,
            summary_interval=0,
            checkpoint_interval=0,
            validation_interval=0,
            max_to_keep=2,
            best_checkpoint_metric_comp="higher",
            optimizer_config=optimization.OptimizationConfig(
                dict(
                    optimizer=dict(
                        type="adamw",
                        adamw=dict(
                            beta_2=0.98,
                            epsilon=1e-6,
                            weight_decay_rate=0.01,
                            exclude_from_weight_decay=NO_WEIGHT_DECAY,
                        ),
                    ),
                    learning_rate=dict(
                        type="polynomial",
                        polynomial=dict(initial_learning_rate=learning_rate, end_learning_rate=0.0),
                    ),
                    warmup=dict(type="polynomial"),
                )
            ),
        ),
    )


@exp_factory.register_config_factory("shatter/pretrain")
def pretrain() -> cfg.ExperimentConfig:
    """Masked-LM pretraining on a prepared corpus."""
    return _experiment(PretrainConfig(), learning_rate=1e-3, train_steps=10_000)


@exp_factory.register_config_factory("shatter/classify")
def classify() -> cfg.ExperimentConfig:
    """Classification of labelled texts, or of pairs of them."""
    return _experiment(ClassifyConfig(), learning_rate=1e-4, train_steps=1_000)


@exp_factory.register_config_factory("shatter/regress")
def regress() -> cfg.ExperimentConfig:
    """Regression from texts, or from pairs of them."""
    return _experiment(RegressConfig(), learning_rate=1e-4, train_steps=1_000)


@exp_factory.register_config_factory("shatter/answer")
def answer() -> cfg.ExperimentConfig:
    """Answers to questions as spans of their contexts."""
    return _experiment(QuestionAnsweringConfig(), learning_rate=1e-4, train_steps=1_000)


@exp_factory.register_config_factory("shatter/tag")
def tag() -> cfg.ExperimentConfig:
    """A tag for each word of a sentence."""
    return _experiment(TagConfig(), learning_rate=1e-4, train_steps=1_000)


NAMES = ("shatter/pretrain", "shatter/classify", "shatter/regress", "shatter/tag", "shatter/answer")
