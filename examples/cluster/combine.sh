#!/usr/bin/env bash
# Combines the parts into one database, and checks it:
#
#     sbatch --dependency=afterok:JOB --cpus-per-task=8 --mem=4G examples/cluster/combine.sh PARTS whole.db
#
# The same line resumes. Most of the time goes to `index`, of which index-array.sh does the largest share in an array of
# tasks. To ask the parts without copying them, repeat --db: cnnfilterdb shift domain --db A --db B
set -euo pipefail

parts=$1 whole=$2
cnnfilterdb merge "$parts"/part-*.db --db "$whole" --quiet
cnnfilterdb index --db "$whole" --threads "${SLURM_CPUS_PER_TASK:-2}"
cnnfilterdb verify --db "$whole" --threads "${SLURM_CPUS_PER_TASK:-2}"
