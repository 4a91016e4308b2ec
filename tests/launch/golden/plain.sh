#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=8
#SBATCH --error=/runs/one/jobs/001-train/%j_0_log.err
#SBATCH --job-name=featgan-train-one
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/one/jobs/001-train/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=24:00:00

# setup
export PYTHONPATH=/runs/one/jobs/001-train/code${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
rm -f /runs/one/jobs/001-train/exit_code
export FEATGAN_MAX_FAILURES=3
[ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || PYTHON -m launch.requeue /runs/one/jobs/001-train || exit
featgan_requeue() {
  code=$?
  trap - EXIT
  [ "$code" -eq 0 ] || PYTHON -m launch.requeue /runs/one/jobs/001-train "$code"
  exit "$code"
}
trap featgan_requeue EXIT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/one/jobs/001-train/%j_%t_log.out --error /runs/one/jobs/001-train/%j_%t_log.err --cpus-per-task=8 --kill-on-bad-exit=1 PYTHON -u -m submitit.core._submit /runs/one/jobs/001-train
