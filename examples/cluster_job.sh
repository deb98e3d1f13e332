#!/bin/bash
#SBATCH --job-name=instamap
#SBATCH --array=1-4
#SBATCH --cpus-per-task=4
#
# Reads the images once, a quarter of them in each task of an array; then one task fits.
#
#     job=$(sbatch --parsable examples/cluster_job.sh particles.star out)
#     sbatch --array=0 --dependency=afterok:$job examples/cluster_job.sh particles.star out
#
# A task that was stopped goes on where it was when it is submitted again, and one that had finished
# does nothing. The last one prints, in the end, what the fit found, with other numbers:
#
#     half1: held-out likelihood +14.91 nats/image beyond an empty map, at step 60 of 60
#     half2: held-out likelihood +14.87 nats/image beyond an empty map, at step 60 of 60
#     resolution: 9.48 Å (half-map FSC 0.143, mask-corrected by phase randomisation, ...
#     maps and records in out/run/: SHA256SUMS, fsc.csv, fsc.png, half1.mrc, half2.mrc, ...
set -euo pipefail

particles=$1
out=$2
shards=4 # as many as the array has tasks
task=$SLURM_ARRAY_TASK_ID
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

if [ "$task" -gt 0 ]; then
    instamap accumulate "$particles" --out "$out/shard-$task" --shard "$task/$shards"
else
    instamap merge "$out"/shard-* --out "$out/statistics" --force
    instamap fit "$out/statistics" --out "$out/run" -O steps=60
fi
