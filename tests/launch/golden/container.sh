#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=8
#SBATCH --error=/runs/one/jobs/001-train/%j_0_log.err
#SBATCH --gpus-per-node=a100:4
#SBATCH --job-name=featgan-train-one
#SBATCH --mem=64000
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/runs/one/jobs/001-train/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=24:00:00

# setup
export PYTHONPATH=/runs/one/jobs/001-train/code.zip${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
export FEATGAN_MAX_FAILURES=3
featgan_job=/runs/one/jobs/001-train
featgan_python() { python "$@"; }
featgan_step() { srun --overlap --export=ALL --nodes=1 --ntasks=1 --container-image=featgan.sqsh python "$@"; }
[ -O "$featgan_job" ] || { echo "featgan: the job folder belongs to another user, so the job is not run: $featgan_job" >&2; exit 2; }
. "$featgan_job/requeue.sh"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/one/jobs/001-train/%j_%t_log.out --error /runs/one/jobs/001-train/%j_%t_log.err --export=ALL --cpus-per-task=8 --kill-on-bad-exit=1 --container-image=featgan.sqsh python -u -m submitit.core._submit /runs/one/jobs/001-train
