#!/usr/bin/env bash
# Cloud TPU: waits for a slice, then starts the training on all of its hosts. From anywhere:
#   ZONE=us-west4-a BUCKET=gs://mine REPOSITORY=https://... experiments/cluster/tpu_queued_resources.sh
# Hosts find each other by themselves. After a preemption of a --spot slice, run it again: the
# training goes on from its last checkpoint.
set -euo pipefail
: "${ZONE:?the zone of the slice}" "${BUCKET:?gs://BUCKET for data and runs}"
: "${REPOSITORY:?the address of this repository}"
name=${NAME:-byol}
type=${TYPE:-v5litepod-64}
runtime=${RUNTIME:-v2-alpha-tpuv5-lite} # of the type

tpu() { gcloud compute tpus "$@" --zone="$ZONE"; }
state() { tpu queued-resources describe "$name" --format='value(state.state)' 2>/dev/null || true; }

# What was preempted or has failed keeps its name until it is deleted.
if [[ $(state) == @(SUSPENDED|FAILED) ]]; then
    tpu queued-resources delete "$name" --force --quiet
fi
if [[ -z $(state) ]]; then
    tpu queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
        --runtime-version="$runtime" --spot
fi
until [[ $(state) == ACTIVE ]]; do
    echo "$name is $(state) ..."
    sleep 60
done

# setsid: the training outlives the connection. SIGTERM to the process of any host stops all, saved.
tpu tpu-vm ssh "$name" --worker=all --command="
    set -e
    sudo apt-get update -qq && sudo apt-get install -qq python3.11-venv  # its own is Python 3.10
    [[ -d byol_jax ]] || git clone $REPOSITORY byol_jax
    cd byol_jax
    ./run.sh setup
    version=\$(.venv/bin/python -c 'import jax; print(jax.__version__)')
    .venv/bin/pip install --quiet \"jax[tpu]==\$version\"
    setsid --fork .venv/bin/python -m experiments.pretrain \
        --config=experiments/configs/imagenet.py:300 \
        --workdir=$BUCKET/imagenet300 \
        --config.data.dir=$BUCKET/data \
        </dev/null >>pretrain.log 2>&1
"
echo "Started; on a host, byol_jax/pretrain.log says how it goes."
