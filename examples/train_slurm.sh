#!/bin/bash
# Trains on four hosts: see docs/hosts.md.
#SBATCH --job-name=f0 --nodes=4 --ntasks-per-node=8 --gpus-per-node=8
#SBATCH --cpus-per-task=12 --time=24:00:00
#SBATCH --signal=TERM@120 --requeue --open-mode=append --output=f0.log
run=/shared/runs/f0
srun --kill-on-bad-exit=1 .venv/bin/python experiments/experiment.py \
    --config=f0 --data_dir=/shared/tensorflow_datasets --checkpoint_dir=$run \
    || exit
# Without results, SIGTERM stopped the run before its end.
grep -q '"results"' $run/run.json || scontrol requeue $SLURM_JOB_ID
