"""The experiments by name: shatter/pretrain and shatter/classify.

Settings left at None or 0 here are derived from others when a run starts; see settings.py.
"""

from official.core import config_definitions as cfg
from official.core import exp_factory
from official.modeling import optimization

from shatter_tf.checkpoints import BEST_SUBDIR
from shatter_tf.tasks import ClassifyConfig, PretrainConfig

# Patterns in the names of variables that weight decay leaves alone: norms, biases, and what belongs to the partition.
NO_WEIGHT_DECAY = ["layer_norm", "LayerNorm", "bias"]


def _experiment(task: cfg.TaskConfig, learning_rate: float, train_steps: int, best_metric: str) -> cfg.ExperimentConfig:
    for data in (task.train_data, task.validation_data):
        data.global_batch_size = 32
    task.validation_data.global_batch_size = 0
    return cfg.ExperimentConfig(
        task=task,
        runtime=cfg.RuntimeConfig(enable_xla=True),
        trainer=cfg.TrainerConfig(
            train_steps=train_steps,
            steps_per_loop=0,
            summary_interval=0,
            checkpoint_interval=0,
            validation_interval=0,
            max_to_keep=2,
            best_checkpoint_export_subdir=BEST_SUBDIR,
            best_checkpoint_eval_metric=best_metric,
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
    return _experiment(PretrainConfig(), learning_rate=1e-3, train_steps=10_000, best_metric="masked_lm_accuracy")


@exp_factory.register_config_factory("shatter/classify")
def classify() -> cfg.ExperimentConfig:
    """Classification of labelled texts, or of pairs of them."""
    return _experiment(ClassifyConfig(), learning_rate=1e-4, train_steps=1_000, best_metric="cls_accuracy")


NAMES = ("shatter/pretrain", "shatter/classify")
