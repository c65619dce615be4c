#!/usr/bin/env bash
# Trains on several machines under Slurm, a process for each machine and all of its GPUs:
#
#   sbatch --nodes=2 --gpus-per-node=8 docs/running/slurm.sh --experiment=shatter/pretrain --model_dir=/shared/runs/base \
#       --data_dir=/shared/corpus --config=base
#
# It runs .venv/bin/shatter or, with Pyxis, the image that the environment variable IMAGE names (docker/gpu.Dockerfile).
# A --params_override of your own takes the place of the one below. model_dir and data_dir are on a disk that all machines
# see. Five minutes before its time is up the job is told, saves a checkpoint, and goes back into the queue; so it does
# when a machine is lost. A mistake in the settings ends it with 2.
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300

HOSTS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed 's/.*/"&:2222"/' | paste -sd,)
export HOSTS PATH="$PWD/.venv/bin:$PATH"

# A process that stops leaves the others two minutes to do so, too.
srun --kill-on-bad-exit=0 --wait=120 ${IMAGE:+--container-image="$IMAGE" --container-mounts=/shared:/shared} bash -c '
  export TF_CONFIG="{\"cluster\": {\"worker\": [$HOSTS]}, \"task\": {\"type\": \"worker\", \"index\": $SLURM_NODEID}}"
  exec shatter train \
      --params_override=runtime.distribution_strategy=multi_worker_mirrored,runtime.mixed_precision_dtype=bfloat16 "$@"
' bash "$@"
code=$?
case "$code" in
  75 | 137 | 143) scontrol requeue "$SLURM_JOB_ID" ;; # to be tried again, or killed with the machine it was on
esac
exit "$code"
