"""Finds what is wrong with settings before anything is built: `problems`, a line for each."""

import contextlib
import operator
import re

import tensorflow as tf
from official.core import config_definitions as cfg
from official.modeling import hyperparams, optimization, tf_utils

from shatter_tf import distribution
from shatter_tf.command_line import first_line, nearest
from shatter_tf.data.pretraining import PretrainDataConfig
from shatter_tf.encoder import feed_forward_activation
from shatter_tf.tasks import OPTIMIZERS, EncoderConfig, metric_names

# Settings of the trainer.
_POSITIVE = (
    *("train_steps", "steps_per_loop", "checkpoint_interval", "validation_interval", "summary_interval"),
    *("accumulation_steps", "max_skipped_steps", "max_to_keep"),
)

# Settings of optimizers: the share of a running mean that a step keeps.
_FRACTIONS = ("beta_1", "beta_2", "rho", "momentum")

# Model Garden's settings that are ignored here.
_IGNORED = {
    "trainer": (
        *("train_tf_while_loop", "train_tf_function", "eval_tf_function", "eval_tf_while_loop", "allow_tpu_summary"),
        *("continuous_eval_timeout", "best_checkpoint_export_subdir", "loss_upper_bound", "recovery_begin_steps"),
        *("recovery_max_trials", "validation_summary_subdir", "preemption_on_demand_checkpoint"),
    ),
    "runtime": (
        *("gpu_thread_mode", "dataset_num_private_threads", "per_gpu_thread_count", "worker_hosts", "task_index"),
        *("num_packs", "run_eagerly", "batchnorm_spatial_persistent", "tpu_enable_xla_dynamic_padder"),
        *("num_cores_per_replica", "default_shard_dim", "use_tpu_mp_strategy"),
    ),
    "task": (
        *("differential_privacy_config", "allow_image_summary", "hub_module_url", "init_cls_pooler", "scale_loss"),
        "model.mlm_output_weights_use_proj",
    ),
    "task.train_data": (
        *("is_training", "drop_remainder", "shuffle_buffer_size", "cache", "cycle_length", "block_length"),
        *("ram_budget", "deterministic", "sharding", "tf_data_service_job_name", "tfds_as_supervised"),
        *("tfds_skip_decoding_feature", "enable_shared_tf_data_service_between_parallel_trainers"),
        *("apply_tf_data_service_before_batching", "trainer_id", "prefetch_buffer_size", "autotune_algorithm"),
        "use_next_sentence_label",
    ),
}
_IGNORED["task.validation_data"] = _IGNORED["task.train_data"]


def _ignored(params: cfg.ExperimentConfig) -> list[str]:
    """Returns a line for every setting that was changed without effect."""
    usual = cfg.ExperimentConfig(task=type(params.task)(), trainer=type(params.trainer)())
    found = []
    for name in (f"{path}.{name}" for path, names in _IGNORED.items() for name in names):
        with contextlib.suppress(AttributeError):  # not every task has them all
            value, default = (operator.attrgetter(name)(p) for p in (params, usual))
            if value != default:
                found.append(f"{name}={value}: has no effect here; leave it out")
    return found


def _encoder_problems(config: EncoderConfig, vocabulary_size: int) -> list[str]:
    if config.type not in ("any", "bert"):
        return [f"task.model.encoder.type={config.type}: use any, which is Shatter, or bert"]
    encoder, prefix = config.get(), f"task.model.encoder.{config.type}"
    found = [f"{prefix}.{problem}" for problem in encoder.problems()]
    try:
        feed_forward_activation(encoder.hidden_activation)
    except ValueError:
        found.append(
            f"{prefix}.hidden_activation={encoder.hidden_activation}: no such activation; try squared_relu, gelu"
        )
    for name in ("output_range", "return_attention_scores"):
        if getattr(encoder, name):
            found.append(f"{prefix}.{name}={getattr(encoder, name)} is for encoders in Python alone; leave it out")
    if encoder.vocab_size < vocabulary_size:
        found.append(
            f"{prefix}.vocab_size={encoder.vocab_size} is less than the vocabulary's {vocabulary_size} wordpieces"
        )
    return found


def _optimizer_problems(config: optimization.OptimizationConfig) -> list[str]:
    """Returns a line for every setting with which training would fail, or ascend where it should descend."""
    name = config.optimizer.type
    found = []
    if name not in OPTIMIZERS:
        found.append(
            f"trainer.optimizer_config.optimizer.type={name}: use {', '.join(OPTIMIZERS)}, whose gradients can be "
            "summed and clipped before they are applied"
        )
    if config.ema is not None:
        found.append("trainer.optimizer_config.ema: its optimizer cannot skip steps that are not finite; leave it out")
    for kind in ("optimizer", "learning_rate", "warmup"):
        part = getattr(config, kind)
        for key, value in (part.get() or hyperparams.Config()).as_dict().items():
            where = f"trainer.optimizer_config.{kind}.{part.type}.{key}={value}"
            numbers = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, (int, float))]
            if any(n < 0 for n in numbers):
                found.append(f"{where} is negative")
            elif key in _FRACTIONS and any(n >= 1 for n in numbers):
                found.append(f"{where} is not in [0, 1)")
            elif key == "name" and value is not None and not re.fullmatch(r"[A-Za-z0-9.][\w./>-]*", value, re.ASCII):
                found.append(f"{where}: TensorFlow takes letters, digits and ._/>- for a name")
            elif key.endswith("decay_steps") and any(n < 1 for n in numbers):
                found.append(f"{where} is too few")
    if found:
        return found
    try:
        with tf.Graph().as_default():  # an eager tensor would start the devices, before strategies can choose them
            factory = optimization.OptimizerFactory(config)
            factory.build_optimizer(factory.build_learning_rate())
    except (ValueError, TypeError) as error:
        found.append(
            f"trainer.optimizer_config: no {name} with a {config.learning_rate.type} learning rate comes of its "
            f"settings ({first_line(error)})"
        )
    return found


def problems(params: cfg.ExperimentConfig, vocabulary_size: int) -> list[str]:
    """Returns a line for everything in the settings that would fail later, or have no effect.

    Args:
      params: with every setting in place.
      vocabulary_size: wordpieces; 0 where the data could not be read: then what depends on it is not checked.
    """
    task, trainer, runtime = params.task, params.trainer, params.runtime
    found = _ignored(params) + _encoder_problems(task.model.encoder, vocabulary_size)
    encoder = task.model.encoder.get()
    longest = getattr(encoder, "max_position_embeddings", None) or getattr(encoder, "max_sequence_length", None)
    for name in ("vocab_file", "lower_case"):
        own, others = (getattr(data, name, None) for data in (task.validation_data, task.train_data))
        if own != others:
            found.append(f"task.validation_data.{name}={own} is not that of training, {others}; leave it out")
    for name in ("train_data", "validation_data"):
        data = getattr(task, name)
        if data.global_batch_size < 1:
            found.append(f"task.{name}.global_batch_size={data.global_batch_size} is not positive")
        if data.seq_length < 8 and (data.seq_length or vocabulary_size):
            found.append(f"task.{name}.seq_length={data.seq_length} is less than 8")
        elif longest and data.seq_length > longest:
            found.append(f"task.{name}.seq_length={data.seq_length} is longer than the encoder's {longest} positions")
        if data.enable_tf_data_service and not isinstance(data, PretrainDataConfig):
            found.append(f"task.{name}.enable_tf_data_service is for pretraining; leave it out")
        found += [f"task.{name}.{problem}" for problem in getattr(data, "problems", list)()]
    of_task = [f"task.{problem}" for problem in getattr(task, "problems", list)()]
    found += of_task
    if vocabulary_size and not of_task:
        metric, known = trainer.best_checkpoint_eval_metric, metric_names(task)
        if metric not in known:
            found.append(
                f"trainer.best_checkpoint_eval_metric={metric}: there are {', '.join(known)}{nearest(metric, known)}"
            )
    for name in _POSITIVE:
        if getattr(trainer, name) < 1:
            found.append(f"trainer.{name}={getattr(trainer, name)} is not positive")
    if runtime.loss_scale is not None and runtime.mixed_precision_dtype != "float16":
        found.append(f"runtime.loss_scale={runtime.loss_scale} is for runtime.mixed_precision_dtype=float16")
    elif runtime.loss_scale not in (None, "dynamic"):
        found.append(f"runtime.loss_scale={runtime.loss_scale}: a fixed scale would not skip steps; use dynamic")
    if runtime.distribution_strategy == distribution.TPU and runtime.tpu not in (None, "", "local"):
        remote = f"runtime.tpu={runtime.tpu}: its hosts have TensorFlow alone, and cannot"
        if not isinstance(task.train_data, PretrainDataConfig):
            found.append(f"{remote} read text; fine-tune on a TPU VM, runtime.tpu=local, or on GPUs")
        if task.train_data.enable_tf_data_service:
            found.append(f"{remote} take batches of a tf.data service; leave it out")
    if runtime.distribution_strategy == distribution.MULTI_WORKER and getattr(task.train_data, "tfds_name", ""):
        found.append(
            f"task.train_data.tfds_name={task.train_data.tfds_name}: reading it would start TensorFlow before the "
            "machines have met; write it to files, and give --data_dir"
        )
    if runtime.mixed_precision_dtype == "float16" and runtime.distribution_strategy == distribution.TPU:
        found.append("runtime.mixed_precision_dtype=float16: TPUs have bfloat16; use that")
    if runtime.mixed_precision_dtype not in (None, "float32", "bfloat16", "float16"):
        found.append(f"runtime.mixed_precision_dtype={runtime.mixed_precision_dtype}: use float32, bfloat16, float16")
    if trainer.validation_steps < 1 and trainer.validation_steps != -1:
        found.append(f"trainer.validation_steps={trainer.validation_steps}: use -1 for all of the validation data")
    if trainer.best_checkpoint_metric_comp not in ("higher", "lower"):
        found.append(f"trainer.best_checkpoint_metric_comp={trainer.best_checkpoint_metric_comp}: use higher, lower")
    try:
        tf_utils.get_activation(getattr(task.model, "mlm_activation", None))
    except ValueError:
        found.append(f"task.model.mlm_activation={task.model.mlm_activation}: no such activation; try gelu")
    if getattr(task.model, "cls_heads", None):
        found.append("task.model.cls_heads: the data has no labels for such a head; leave it out")
    if not 0 <= task.train_data.seed < 2**32:
        found.append(f"task.train_data.seed={task.train_data.seed} is not in [0, 2^32)")
    found += _optimizer_problems(trainer.optimizer_config)
    of_devices = distribution.problems(runtime)
    replicas = None if of_devices else distribution.count_replicas(runtime)
    if replicas and trainer.accumulation_steps > 0:
        found += distribution.batch_problems(params, replicas)
    return found + of_devices
