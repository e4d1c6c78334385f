#!/usr/bin/env bash
# 8b on 8 nodes x 8 GPUs
#
#   NODE_RANK=0 ADDRESS=first-node bash THIS_FILE        on each node, counted from 0
#
# A step: 1024 sequences = 64 GPUs x 4 x 4 accumulated.
# Each GPU: about 21.2 GB of 80.
set -euo pipefail

torchrun --nnodes=8 --nproc-per-node=8 --node-rank=$NODE_RANK --master-addr=$ADDRESS --master-port=29500 \
    --log-dir=runs/8b/launch --redirects=3 --tee=0:3 \
    -m -- mm_lightning.cli fit --config configs/8b.yaml --trainer.num_nodes 8 --trainer.devices 8
