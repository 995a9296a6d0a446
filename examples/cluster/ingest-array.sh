#!/usr/bin/env bash
# A task of a batch system imports its share of the models into a part of its own:
#
#     sbatch --array=1-64 --cpus-per-task=2 --mem=4G --time=4:00:00 examples/cluster/ingest-array.sh PARTS pypi
#     seq 64 | parallel -j 8 --joblog parts.log --resume-failed 'SHARD={}/64 examples/cluster/ingest-array.sh PARTS pypi'
#
# The same line resumes: models that are present are skipped. Without a batch system SHARD names the share. Where nodes
# share no file system, PARTS is a folder of the node, and PUSH=s3://bucket/parts receives the finished part.
set -euo pipefail

parts=$1
shift
shard=${SHARD:-${SLURM_ARRAY_TASK_ID:?give SHARD=I/N or run it as an array}/${SLURM_ARRAY_TASK_COUNT:?}}
mkdir -p "$parts"
name=part-${shard%/*}-of-${shard#*/}
part=$parts/$name.db

cnnfilterdb ingest "$@" --shard "$shard" --db "$part" --log-format json \
  --threads "${SLURM_CPUS_PER_TASK:-2}" --yes

if [[ -n ${PUSH:-} ]]; then
  cnnfilterdb push "$PUSH/$name" --db "$part" --quiet
fi
