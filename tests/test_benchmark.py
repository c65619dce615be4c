"""What a step costs: the counts against hand-made ones, and the command as a user runs it."""

import json
import math
import os
import subprocess
import sys

import pytest
import tensorflow as tf
from tiny import PLAIN

from shatter_tf import benchmark
from shatter_tf.encoders.registry import FAMILIES
from shatter_tf.errors import UserError
from shatter_tf.measuring import cost, cross_compiler, targets
from shatter_tf.measuring.cost import largest_batch
from shatter_tf.measuring.hlo import matmul_flops
from shatter_tf.training import device, settings
from shatter_tf.training.timing import TrainingStep, synthetic_batch

TPU_PYTHON, GPU_PYTHON = (
    os.path.join(os.path.dirname(os.path.dirname(__file__)), f".venv-{kind}", "bin", "python")
    for kind in ("tpu", "gpu")
)
SIZES = dict(vocab_size=128, hidden_size=16, num_layers=1, num_parts=2, intermediate_size=32)
OVERRIDE = ",".join(f"task.model.encoder.shatter.{key}={value}" for key, value in SIZES.items())


def run_benchmark(*flags):
    command = [sys.executable, "-m", "shatter_tf.benchmark", f"--params_override={OVERRIDE}", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_flops_are_those_of_the_matrix_products():
    """Counted by hand: every product of the forward pass; the backward pass does each twice, for both its operands."""
    batch, length, masked, width, inner, vocabulary = 3, 16, 3, 16, 32, 128
    params = settings.resolve_without_data(
        params_override=f"{PLAIN},{OVERRIDE},task.train_data.global_batch_size={batch},"
        f"task.train_data.seq_length={length},"
        "task.model.encoder.shatter.use_position_bias=false,task.model.encoder.shatter.normalizer=row_sum"
    )
    tokens, pairs = batch * length, batch * length * length
    weights = tokens * width * (2 * width + 2 * inner) + batch * masked * (width * width + width * vocabulary)
    # Segment embeddings are a product with one-hot rows, whose other operand has no gradient.
    segments, types = tokens * 2 * width, 2
    attention = pairs * width * 2
    expected = 2 * (3 * (weights + attention) + types * segments)
    flops = matmul_flops(TrainingStep(params, synthetic_batch(params)).hlo())
    assert flops == expected


@pytest.mark.parametrize(
    "more",
    [
        "task.model.encoder.shatter.query_block_size=4",
        "task.model.encoder.shatter.query_block_size=8,task.model.encoder.shatter.recompute_blocks=true",
        "trainer.accumulation_steps=3",
        "trainer.accumulation_steps=3,task.model.encoder.shatter.query_block_size=8",
    ],
)
def test_flops_of_a_loop_count_for_each_round(more):
    """With blocks of queries, or a batch in parts, the products do not shrink: what is not kept is recomputed."""

    def flops(more):
        settings_of = f"{PLAIN},{OVERRIDE},task.train_data.global_batch_size=3,task.train_data.seq_length=16,{more}"
        params = settings.resolve_without_data(params_override=settings_of)
        return matmul_flops(TrainingStep(params, synthetic_batch(params)).hlo())

    whole = flops("trainer.train_steps=1")
    assert whole <= flops(more) < 1.6 * whole


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_step_gives_back_its_memory(precision):
    params = settings.resolve_without_data(
        params_override=f"{OVERRIDE},task.train_data.global_batch_size=2,task.train_data.seq_length=16,"
        f"runtime.mixed_precision_dtype={precision}"
    )
    step = TrainingStep(params, synthetic_batch(params))
    step.hlo()
    variables = [*step.model.variables, *step.optimizer.variables()]
    assert len(variables) > 3 * len(step.model.trainable_variables)
    step.free()
    assert not any(variable.read_value().shape.num_elements() for variable in variables)


def test_a_synthetic_batch_is_what_training_sees(pretrain):
    params = pretrain().params
    real, synthetic = TrainingStep(params).batch, synthetic_batch(params)
    assert {k: (v.shape, v.dtype) for k, v in real.items()} == {k: (v.shape, v.dtype) for k, v in synthetic.items()}


@pytest.mark.parametrize(("fixed", "per_row", "memory"), [(1000, 7, 10_000), (5, 3, 4), (0, 11, 121)])
def test_the_largest_batch_fits_and_one_more_does_not(fixed, per_row, memory):
    rows = largest_batch({8: fixed + 8 * per_row, 4: fixed + 4 * per_row}, memory)
    assert rows == 0 or fixed + rows * per_row <= memory
    assert fixed + (rows + 1) * per_row > memory


class Target:
    """A device on which a row takes 3 bytes in Shatter and 5 in BERT, half of that beyond 100 rows, and weights 100."""

    def __init__(self, refinements=0):
        self.refinements = refinements
        self.compiled = []

    def compile(self, name, params):
        rows = params.task.train_data.global_batch_size
        self.compiled.append((name, rows))
        return dict(peak_bytes=100 + dict(shatter=3, bert=5)[name] * (rows if rows < 100 else 50 + rows // 2))

    def choose(self, runtime):
        device.apply(runtime, device.Way(True, "float32"))

    def time(self, models):
        pass


@pytest.mark.parametrize(("refinements", "largest"), [(0, [300, 180]), (2, [501, 261])])
def test_the_largest_batches_of_both_models_are_measured(refinements, largest):
    args = benchmark.parse_arguments([f"--params_override={OVERRIDE}", "--memory_gb=1e-6", "--compare=bert"])
    target = Target(refinements)
    measurement = cost.measure_models(args, target, seq_length=16, batch_size=8)
    assert [measurement[name]["largest_batch"] for name in ("shatter", "bert")] == largest
    assert measurement["ratio"]["largest_batch"] == largest[0] / largest[1]
    assert "largest batch that fits" in cost.format_table(measurement)
    assert len(target.compiled) == len(set(target.compiled)) == 2 * (2 + refinements)


def test_no_batch_is_named_when_memory_does_not_grow_with_it():
    assert largest_batch({8: 100, 4: 100}, 1e9) is None


LOOPS = """HloModule m, entry_computation_layout={()->f32[]}

%body (p: f32[]) -> f32[] {
  %f = f32[] fusion(%p), calls=%c, backend_config={"estimated_cycles":"10"}
}

%forward_condition (p: (s32[], f32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(8)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%backward_condition (p: (s32[], f32[], s32[])) -> pred[] {
  %i = s32[] get-tuple-element(%p), index=0
  %limit = s32[] get-tuple-element(%p), index=2
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[]) -> f32[] {
  %g = f32[] fusion(%x), calls=%d, backend_config={"estimated_cycles":"5"}
  %start = (s32[], f32[]) tuple(%zero, %g)
  %w = (s32[], f32[]) while(%start), condition=%forward_condition, body=%body
  %count = s32[] get-tuple-element(%w), index=0
  %again = (s32[], f32[], s32[]) tuple(%zero, /*index=1*/%g, %count)
  %v = (s32[], f32[]) while(%again), condition=%backward_condition, body=%body
  %u = f32[] while(%g), condition=%backward_condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""


def test_cycles_of_a_loop_count_once_for_each_round():
    assert cross_compiler.total_cycles(LOOPS) == 5 + 8 * 10 + 8 * 10 + 3 * 10
    with pytest.raises(ValueError, match="unknown length"):
        cross_compiler.total_cycles(LOOPS.replace("known_trip_count", "unknown"))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--target=abacus", "--target=abacus: .*cpu, gpu, tpu:v4:2x2x1"),
        ("--target=tpu:v4", "--target=tpu:v4: .*tpu:v4:2x2x1"),
        ("--target=gpu", "--target=gpu: "),
        ("--target=gpu:abacus", "--target=gpu:abacus: .*v100"),
        ("--target=cpu:v100", "--target=cpu:v100: .*v100"),
        ("--target=gpu:v100 --train_steps=9", "--train_steps: --target=gpu:v100 "),
        ("--compiler_python=nowhere --target=tpu:v4:2x2x1", "--compiler_python=nowhere: .*make tpu-compiler"),
        ("--json=nowhere/f.json", "--json=nowhere/f.json"),
        ("--rounds=0", "--rounds=0"),
        ("--seq_length=4", "seq_length=4 .*8"),
        ("--config_file=nowhere.yaml", "--config_file=nowhere.yaml"),
        ("--compare=brt", r"--compare=brt: .*\bbert\b"),
        ("--compare=shatter", r"--compare=shatter: .*\bbert\b"),
    ],
)
def test_a_mistake_is_one_line(capsys, flag, message):
    flags = flag.split()
    if flag == "--target=gpu" and tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=message) as refusal:
        benchmark.main([f"--params_override={OVERRIDE}", *flags])
    assert "\n" not in str(refusal.value)
    assert capsys.readouterr().out == ""


def test_every_other_family_may_be_compared(capsys):
    with pytest.raises(UserError) as refusal:
        benchmark.main(["--compare=nonsense"])
    assert set(FAMILIES) - {"shatter"} <= set(str(refusal.value).replace(",", "").split())
    for name in set(FAMILIES) - {"shatter"}:
        args = benchmark.parse_arguments([f"--compare={name}", f"--params_override={OVERRIDE}"])
        cost.check(args)
        models = cost.resolve(args, Target(), seq_length=16, batch_size=2)
        encoders = {key: params.task.model.encoder for key, params in models.items()}
        assert {key: encoder.type for key, encoder in encoders.items()} == {"shatter": "shatter", name: name}
        assert {encoder.get().hidden_size for encoder in encoders.values()} == {SIZES["hidden_size"]}


def test_on_a_machine_both_berts_are_compared():
    args = benchmark.parse_arguments([f"--params_override={OVERRIDE}"])
    cost.check(args)
    models = cost.resolve(args, Target(), seq_length=16, batch_size=2)
    assert [*models] == ["shatter", "bert", "tuned_bert"]
    berts = [models[name].task.model.encoder.get() for name in ("bert", "tuned_bert")]
    assert [bert.positions for bert in berts] == ["absolute", "rotary"]
    assert len({(bert.hidden_size, bert.num_layers, bert.vocab_size) for bert in berts}) == 1


@pytest.mark.parametrize("instructions", ["AMX", None])
def test_a_cpu_computes_as_training_would(instructions, monkeypatch, tmp_path):
    monkeypatch.setattr(device, "bfloat16_instructions", lambda: instructions)
    machine = targets.Machine("cpu", 1, str(tmp_path))
    for more, expected in (
        ("", (False, "bfloat16") if instructions else (True, "float32")),
        ("runtime.enable_xla=true", (True, "float32")),
        ("runtime.mixed_precision_dtype=float32", (not instructions, "float32")),
    ):
        args = benchmark.parse_arguments([f"--params_override={','.join(filter(None, (OVERRIDE, more)))}"])
        runtime = cost.resolve(args, machine, 16, 2)["shatter"].runtime
        assert (runtime.enable_xla, runtime.mixed_precision_dtype) == expected


def test_sizes_may_have_the_name_that_shatter_had():
    old = OVERRIDE.replace(".shatter.", ".any.")
    assert old != OVERRIDE
    args = benchmark.parse_arguments([f"--params_override={old}"])
    for params in cost.resolve(args, Target(), seq_length=1024, batch_size=2).values():
        assert params.task.model.encoder.get().hidden_size == SIZES["hidden_size"]
        assert params.task.model.encoder.get().longest == 1024


@pytest.mark.slow
def test_both_models_are_measured_side_by_side(tmp_path):
    json_path, png_path = tmp_path / "f.json", tmp_path / "f.png"
    process = run_benchmark(
        *("--seq_length=16,32", "--batch_size=16", "--rounds=2", "--train_steps=1000"),
        f"--params_override={OVERRIDE},runtime.enable_xla=true",
        *(f"--json={json_path}", f"--plot={png_path}"),
    )
    assert process.returncode == 0, process.stderr
    assert "1,000 steps" in process.stdout
    assert png_path.read_bytes().startswith(b"\x89PNG")
    result = json.loads(json_path.read_text())
    assert [m["seq_length"] for m in result["measurements"]] == [16, 32]
    for measurement in result["measurements"]:
        for model in ("shatter", "bert", "tuned_bert"):
            figures = measurement[model]
            assert figures["fastest_seconds"] <= figures["step_seconds"] <= figures["slowest_seconds"]
            assert 0 < figures["temporary_bytes"] < figures["peak_bytes"]
            # Weights and two moments of each, float32.
            assert figures["argument_bytes"] > 12 * figures["parameters"]
            assert figures["training_days"] > 0
        assert measurement["ratio"] == measurement["ratios"]["bert"]
        for baseline, ratios in measurement["ratios"].items():
            for key, ratio in ratios.items():
                assert math.isclose(ratio, measurement["shatter"][key] / measurement[baseline][key])


FAKE_COMPILER = """#!/bin/sh
echo "$@" >> {calls}
echo 'noise before the line'
echo '{{"compiler": "fake 1.0", "peak_bytes": 3000000, "temporary_bytes": 5, "cycles": 2000000}}'
"""


def test_a_compiler_gets_both_modules_and_gives_the_figures(tmp_path, capsys):
    calls, compiler, path = (tmp_path / name for name in ("calls", "python", "f.json"))
    compiler.write_text(FAKE_COMPILER.format(calls=calls))
    compiler.chmod(0o755)
    benchmark.main(
        [
            *(f"--params_override={OVERRIDE}", "--target=tpu:v5e:2x2", "--seq_length=16", "--batch_size=2"),
            *(f"--compiler_python={compiler}", f"--json={path}", f"--hlo_dir={tmp_path / 'hlo'}", "--train_steps=10"),
        ]
    )
    assert "fake 1.0" in capsys.readouterr().out
    for name, call in zip(("shatter", "bert"), calls.read_text().splitlines(), strict=True):
        script, module, target, text = call.split()
        assert script == cross_compiler.__file__
        assert os.path.getsize(module) > 1000
        assert os.path.basename(module) == f"{name}-2x16.hlo.pb"
        assert target == "tpu:v5e:2x2"
        assert text == module.replace(".pb", ".txt")

    result = json.loads(path.read_text())
    assert (result["precision"], result["compiler"]) == ("bfloat16", "fake 1.0")
    assert result["encoder"]["num_parts"] == SIZES["num_parts"]
    figures = result["measurements"][0]["shatter"]
    assert math.isclose(figures["step_seconds"], 2e6 / 1.5e9)
    assert math.isclose(figures["training_days"], 10 * 256 * 16 / (2 * 16 / figures["step_seconds"]) / 86_400)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists(TPU_PYTHON), reason="`make tpu-compiler` has not been run")
def test_the_tpu_compiler_takes_the_step(tmp_path):
    path = tmp_path / "f.json"
    process = run_benchmark(
        *("--target=tpu:v5e:2x2", "--seq_length=16", "--batch_size=2", f"--json={path}", f"--hlo_dir={tmp_path}"),
        f"--compiler_python={TPU_PYTHON}",
    )
    assert process.returncode == 0, process.stderr
    assert "not a run on a TPU" in process.stdout
    result = json.loads(path.read_text())
    assert result["precision"] == "bfloat16"
    assert "libtpu" in result["compiler"]
    for model in ("shatter", "bert"):
        figures = result["measurements"][0][model]
        assert figures["cycles"] > 0
        assert 0 < figures["share_of_peak"] < 1
        assert figures["peak_bytes"] > 0
        assert figures["argument_bytes"] > 12 * figures["parameters"]
        assert (tmp_path / f"{model}-2x16.hlo.txt").read_text().startswith("HloModule")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists(GPU_PYTHON), reason="`make gpu-compiler` has not been run")
@pytest.mark.parametrize(("gpu", "precision"), [("v100", "float16"), ("h100", "bfloat16")])
def test_the_gpu_compiler_takes_the_step(tmp_path, gpu, precision):
    path, picture = tmp_path / "f.json", tmp_path / "f.png"
    process = run_benchmark(
        *(f"--target=gpu:{gpu}", "--seq_length=16", "--batch_size=16", f"--json={path}", f"--plot={picture}"),
        *("--memory_gb=1", f"--compiler_python={GPU_PYTHON}"),
    )
    assert process.returncode == 0, process.stderr
    assert "not a run on a GPU" in process.stdout
    assert picture.exists()
    result = json.loads(path.read_text())
    assert result["precision"] == precision
    assert "cuda12" in result["compiler"]
    for model in ("shatter", "bert"):
        figures = result["measurements"][0][model]
        assert figures["argument_bytes"] > 12 * figures["parameters"] > 0
        assert 0 < figures["temporary_bytes"] < figures["peak_bytes"]
        assert figures["largest_batch"] > 16
        assert "step_seconds" not in figures
