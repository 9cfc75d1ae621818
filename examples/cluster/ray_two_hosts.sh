#!/usr/bin/env bash
# RL on two hosts by Ray. On the second host: ./ray_two_hosts.sh HOST1 node; on the first: ./ray_two_hosts.sh HOST1 head
# HOST1 is the first host's address. Both need the file ~/.ray/auth_token with the same content, made once by
# `ray get-auth-token --generate` and copied with mode 600: who holds it can run programs on both hosts. Ports: 6379, and those
# that Ray chooses, open between the two and to nobody else.
set -euo pipefail
first=${1:?address of the first host}
role=${2:?head or node}

export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0

if [ "$role" = node ]; then
  # A host that was cut off for long is forgotten by the cluster and its node ends; here it joins again.
  while true; do
    ray start --address "$first:6379" --disable-usage-stats --block || true
    sleep 5
  done
fi

ray start --head --node-ip-address "$first" --port 6379 --include-dashboard false --disable-usage-stats
trap 'ray stop' EXIT
p3o rl --config /shared/mine.yaml --output /shared/runs --name mine \
  --engine ray --workers 2 --ray-address "$first:6379" \
  --set engine.max_failures=5 --set parallel.mode=fsdp --set parallel.timeout_minutes=10
