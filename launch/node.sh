#!/usr/bin/env bash
# One node: a cascade in a container. The same command again goes on where the run stopped.
#
#   IMAGE=nemo-cascade launch/node.sh --config-name=node policy.model_name=/models/nano cascade.run_dir=/data/runs/node
#
# Everything on the command line goes to `nemo-cascade run`. The current folder is mounted and is the current folder inside.
#   MOUNTS="/models /data"    other paths, each mounted under its own name, so that configs and manifests are true in and outside
#   GPUS=all                  what docker's --gpus takes: 4, '"device=0,1"'
#   STOP_SECONDS=900          what `docker stop` and a signal leave for the step, its validation and the checkpoint
#   NEMO_CASCADE_SANDBOX_URL  where model-written code runs (nemo-cascade sandbox-serve on a host that isolates, docs/sandbox.md);
#                             with it the container keeps docker's restrictions, without it it gives up those that forbid bubblewrap
# SIGTERM, SIGUSR1 and `docker stop` save and exit (docs/operation.md).
set -euo pipefail

: "${IMAGE:?name the image, as in IMAGE=nemo-cascade (containers/Dockerfile builds it)}"
stop=${STOP_SECONDS:-900}

# Runs in the container, as its first process: torchrun passes SIGTERM on to its processes, whatever its version, and SIGUSR1
# perhaps not.
on_node() {
  local child=''
  trap 'kill -TERM "$child"' TERM USR1
  torchrun --standalone --nproc-per-node="${NPROC:-gpu}" -m nemo_cascade run "$@" &
  child=$!
  while kill -0 "$child" 2> /dev/null; do wait "$child"; done # a signal ends a wait, not the run
  wait "$child"
}

flags=(
  --rm --gpus "${GPUS:-all}"
  # NCCL shares buffers of a node's GPUs in /dev/shm, of which docker gives 64 MiB, and pins memory for its network cards.
  --ipc=host --ulimit memlock=-1 --ulimit stack=67108864
  # Judges, trackers and sandboxes are reached as from the host.
  --network=host
  --stop-timeout "$((stop + 60))"
  --workdir "$PWD" --volume "$PWD:$PWD"
)
for path in ${MOUNTS:-}; do flags+=(--volume "$path:$path"); done
if [ -z "${NEMO_CASCADE_SANDBOX_URL:-}" ]; then
  flags+=(--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined)
fi
if [ -t 0 ] && [ -t 1 ]; then flags+=(--interactive --tty); fi
# By name alone, so that no token is on a command line.
names=(NPROC HF_HOME HF_TOKEN WANDB_API_KEY GENRM_JUDGE LONG_CONTEXT_JUDGE SWE_JUDGE)
for name in "${names[@]}" "${!NEMO_CASCADE_@}" "${!NCCL_@}" "${!MLFLOW_@}"; do
  if [ -n "${!name+set}" ]; then flags+=(--env "$name"); fi
done
flags+=(
  # torchrun kills its processes so many seconds after a signal.
  --env "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$stop"
  # Megatron's order of communication and computation needs one queue.
  --env "CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
  --env "OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}"
)
exec docker run "${flags[@]}" "$IMAGE" bash -c "$(declare -f on_node); on_node \"\$@\"" on_node "$@"
