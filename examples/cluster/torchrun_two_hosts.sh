#!/usr/bin/env bash
# RL on two hosts by torchrun. On the first host: ./torchrun_two_hosts.sh HOST1 0; on the second: ./torchrun_two_hosts.sh HOST1 1
# HOST1 is the first host's name or address, the same in both calls. Needs port 29500 open between them, and /shared on both.
set -euo pipefail
first=${1:?name of the first host}
number=${2:?number of this host, from 0}

# The interface between the hosts, where there are several: gloo and NCCL guess otherwise.
# export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0

# Said, because a host whose name does not resolve to the address given here would not know that it is the first.
is_host=false
if [ "$number" = 0 ]; then is_host=true; fi

# A failed process ends the others within parallel.timeout_minutes; torchrun then starts all of them again, at most three times,
# and p3o goes on from its last checkpoint.
exec torchrun \
  --nnodes 2 --node-rank "$number" --nproc-per-node "${PROCESSES:-1}" \
  --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-conf "is_host=$is_host" --rdzv-id p3o --max-restarts 3 \
  -m p3o rl --config /shared/mine.yaml --output /shared/runs --name mine \
  --set parallel.mode=fsdp --set parallel.timeout_minutes=10
