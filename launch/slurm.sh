#!/bin/bash
# A cascade as a Slurm job, with or without a container (enroot and pyxis). It comes back by itself when its time is over and
# when it was pre-empted, and goes on where it stopped; so does the same command given again.
#
#   IMAGE=/lustre/images/nemo-cascade.sqsh MOUNTS=/lustre:/lustre sbatch --nodes=32 --account=... --partition=... \
#     launch/slurm.sh --config-name=full policy.model_name=/lustre/models/nano cascade.run_dir=/lustre/runs/full
#
# Everything behind the script's name goes to `nemo-cascade run`; cascade.run_dir must be there, in a folder that all nodes see.
# Without IMAGE the nodes' own Python runs it. docs/cluster.md says what the settings are for.
#
#SBATCH --job-name=nemo-cascade
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# SIGUSR1 to this script 900 seconds before the limit: more than the longest step with its validation and a checkpoint.
#SBATCH --signal=B:USR1@900
set -uo pipefail

run_dir=
for argument in "$@"; do
  case $argument in cascade.run_dir=*) run_dir=${argument#*=} ;; esac
done
if [ -z "$run_dir" ]; then
  echo "nemo-cascade: say cascade.run_dir=... behind the script's name, a folder that all nodes see; a later job goes on from it" >&2
  exit 2
fi

# ------------------------------------------------------------------ settings; what is set outside wins
# Megatron's order of communication and computation needs one queue.
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# torchrun kills its processes so many seconds after a signal; a little less than the lead of --signal above.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-840}
# Compiled kernels are many small files: on each node's own disk, not on the shared one.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/triton-$SLURM_JOB_ID}
# NCCL finds InfiniBand by itself. What may have to be said, by a cluster's own names:
#   export NCCL_SOCKET_IFNAME=bond0      the interface of the first contact, where nodes have several (also GLOO_SOCKET_IFNAME)
#   export NCCL_IB_HCA=mlx5              the cards that carry data, where some are for storage
#   export NCCL_DEBUG=WARN               INFO for one job, to see what was chosen

# ------------------------------------------------------------------ what runs on each node
# Each torchrun comes to the first node and asks who else is there. Which node listens is said, not guessed from names, which
# containers change.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${hosts%%$'\n'*}
if [ -z "$MASTER_ADDR" ]; then
  echo "nemo-cascade: scontrol show hostnames $SLURM_JOB_NODELIST names no node; is this started by sbatch?" >&2
  exit 2
fi
# Two jobs that share their first node need two ports; below those that the kernel gives away.
MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
export MASTER_ADDR MASTER_PORT

# torchrun passes SIGTERM on to its processes, whatever its version, and SIGUSR1 perhaps not.
# shellcheck disable=SC2329  # its text goes to the nodes
on_node() {
  local child='' host=false
  [ "$SLURM_NODEID" -eq 0 ] && host=true
  trap 'kill -TERM "$child"' TERM USR1
  torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-8}" --local-addr="$SLURMD_NODENAME" \
    --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-conf="is_host=$host,join_timeout=1800" \
    --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    -m nemo_cascade run "$@" &
  child=$!
  while kill -0 "$child" 2> /dev/null; do wait "$child"; done # a signal ends a wait, not the run
  wait "$child"
}

container=()
if [ -n "${IMAGE:-}" ]; then
  # A user's own packages in ~/.local would come before the image's.
  container=(--container-image="$IMAGE" --container-mounts="$PWD:$PWD${MOUNTS:+,$MOUNTS}" --container-workdir="$PWD")
  container+=(--no-container-mount-home)
fi

# ------------------------------------------------------------------ run, and come back
note=$run_dir/interrupted.json
noted() { cat "$note" 2> /dev/null; }
before=$(noted)

# srun passes SIGUSR1 to every node; of SIGTERM it would kill them. SIGTERM comes to this script when Slurm ends the job (scancel,
# pre-emption without a grace time), and has come to the nodes too: they save, and whether the job comes back is Slurm's to decide.
ended='' step=''
trap 'kill -USR1 "$step"' USR1
trap 'ended=yes' TERM
# Nodes that have saved leave while others still do, so none is killed because another has gone. One task a node would be bound to
# one core, with all its ranks and verifiers on it.
srun --kill-on-bad-exit=0 --cpu-bind=none "${container[@]}" bash -c "$(declare -f on_node); on_node \"\$@\"" on_node "$@" &
step=$!
while kill -0 "$step" 2> /dev/null; do wait "$step"; done
wait "$step"
code=$?

# torchrun's exit code is 1 for any of its processes' but 0. A run that stopped because it was asked to leaves a note, which the
# next start removes; one that is as it was before is of an earlier job, and this one never began.
if [ "$code" -ne 0 ] && { [ "$code" -eq 75 ] || { [ -e "$note" ] && [ "$(noted)" != "$before" ]; }; }; then
  if [ -n "$ended" ]; then
    echo "nemo-cascade: stopped and saved, because Slurm ended the job; the same command goes on"
    exit 75
  fi
  echo "nemo-cascade: stopped and saved; back to the queue"
  scontrol requeue "$SLURM_JOB_ID"
  exit 75
fi
if [ "$code" -ne 0 ]; then
  echo "nemo-cascade: ended with code $code and does not come back by itself; see above, then the same command goes on" >&2
fi
exit "$code"
