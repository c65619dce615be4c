"""How fast a step of pretraining is in each way to compute, and in the one that training chooses: examples/s.

  python research/ways.py configs/pretrain_mini.yaml 32

Batches of so many rows of 128 tokens, 15 % masked, 8,192 wordpieces, no dropout; medians of 15 steps of each in turn.
"""

import statistics
import sys

from shatter_tf.console import configure_libraries, importing

configure_libraries()
with importing():
    from shatter_tf.training import device, settings
    from shatter_tf.training.device import AUTO, Way
    from shatter_tf.training.timing import TrainingStep, measure, synthetic_batch

config_file, rows = sys.argv[1], int(sys.argv[2])
ENCODER = "task.model.encoder.shatter"
SETTINGS = (
    f"task.train_data.global_batch_size={rows},task.train_data.seq_length=128,task.train_data.mask_rate=0.15,"
    f"{ENCODER}.vocab_size=8192,{ENCODER}.dropout_rate=0.0,{ENCODER}.attention_dropout_rate=0.0"
)

steps = {}
for xla in (AUTO, True, False):
    for precision in (AUTO,) if xla == AUTO else ("float32", "bfloat16"):
        runtime = f"runtime.enable_xla={str(xla).lower()},runtime.mixed_precision_dtype={precision}"
        params = settings.resolve_without_data(config_file=config_file, params_override=f"{SETTINGS},{runtime}")
        device.choose(params.runtime)
        way = Way(params.runtime.enable_xla, params.runtime.mixed_precision_dtype)
        steps[f"{way}{' (chosen)' if xla == AUTO else ''}"] = TrainingStep(params, synthetic_batch(params))

for name, seconds in measure(steps, 15).items():
    print(f"{name:<28}{rows / statistics.median(seconds):.1f} examples/s")
