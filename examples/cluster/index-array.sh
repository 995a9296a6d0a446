#!/usr/bin/env bash
# A task of a batch system computes its share of the fingerprints of a database that all nodes share:
#
#     cnnfilterdb merge PARTS/part-*.db --db whole.db
#     sbatch --array=1-16 --cpus-per-task=2 --mem=4G examples/cluster/index-array.sh whole.db
#
# Afterwards combine.sh fits the bases and finds the fingerprints done. The same line resumes.
set -euo pipefail

shard=${SHARD:-${SLURM_ARRAY_TASK_ID:?give SHARD=I/N or run it as an array}/${SLURM_ARRAY_TASK_COUNT:?}}
cnnfilterdb index --db "$1" --shard "$shard" --threads "${SLURM_CPUS_PER_TASK:-2}" --log-format json
