#!/bin/bash

# Parameters
#SBATCH --account=vision
#SBATCH --comment='a run'
#SBATCH --constraint=ib
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:17
#SBATCH --error=/runs/one/jobs/001-train/%j_0_log.err
#SBATCH --exclude='n[7-8]'
#SBATCH --gpus-per-node=8
#SBATCH --job-name=featgan-train-one
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mail-type=END
#SBATCH --mem=400GB
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/runs/one/jobs/001-train/%j_0_log.out
#SBATCH --partition=a100,h100
#SBATCH --qos=low
#SBATCH --requeue
#SBATCH --reservation=maintenance
#SBATCH --signal=USR2@300
#SBATCH --time=2-00:00:00
#SBATCH --wckey=featgan

# setup
module load cuda
source env.sh
export PYTHONPATH=/runs/one/jobs/001-train/code.zip${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
export FEATGAN_MAX_FAILURES=3
featgan_job=/runs/one/jobs/001-train
featgan_python() { python3 "$@"; }
[ -O "$featgan_job" ] || { echo "featgan: the job folder belongs to another user, so the job is not run: $featgan_job" >&2; exit 2; }
. "$featgan_job/requeue.sh"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/one/jobs/001-train/%j_%t_log.out --error /runs/one/jobs/001-train/%j_%t_log.err --export=ALL --cpus-per-task=12 --kill-on-bad-exit=1 python3 -u -m submitit.core._submit /runs/one/jobs/001-train
