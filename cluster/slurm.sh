#!/usr/bin/env bash
# A Ray cluster for as long as one job runs, on the nodes that Slurm gives: sbatch cluster/slurm.sh COMMAND...
#
#   sbatch --nodes=4 cluster/slurm.sh python jobs/pipeline.py --config jobs/configs/pipeline.yaml
#
# Submitted from the repository, with the environment of `make setup` on a file system that all nodes see. The corpus
# and the output lie there or in object storage.
#SBATCH --job-name=distindex
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

[[ $# -gt 0 ]] || { echo "slurm.sh: say what to run: sbatch cluster/slurm.sh python jobs/pipeline.py ..." >&2; exit 2; }
# shellcheck disable=SC1091
. "${DISTINDEX_VENV:-.venv}/bin/activate"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head="${nodes[0]}"
port=$((20000 + SLURM_JOB_ID % 20000))
# Only this job's own processes may join, or run code there. Exported, srun hands it to every node.
RAY_AUTH_TOKEN="$(python -c 'import secrets; print(secrets.token_hex(32))')"
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# Short, since names of sockets are; one for each job, since nodes may be shared.
directory="/tmp/ray-$SLURM_JOB_ID"
cpus="${SLURM_CPUS_ON_NODE:-$(nproc)}"

# `--block` keeps each Ray in the step that started it: it ends with the job, and no other Ray does.
srun --nodes=1 --ntasks=1 --overlap -w "$head" \
    ray start --head --block --node-ip-address="$head" --port="$port" --temp-dir="$directory" --num-cpus="$cpus" &
until ray health-check --address "$head:$port" >/dev/null 2>&1; do
    kill -0 $! || { echo "slurm.sh: Ray did not start on $head" >&2; exit 1; }
    sleep 2
done
if ((${#nodes[@]} > 1)); then
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --overlap --exclude="$head" \
        ray start --block --address="$head:$port" --num-cpus="$cpus" &
fi

# distindex joins the cluster by RAY_ADDRESS. What was killed goes on where it was when Slurm starts the job again.
RAY_ADDRESS="$head:$port" "$@"
