#!/usr/bin/env bash
# Cloud TPU: waits for a slice, then starts pre-training on all of its hosts. From any machine:
#   ZONE=us-west4-a BUCKET=gs://mine REPOSITORY=https://... experiments/cluster/tpu_queued_resources.sh
# The hosts find each other by themselves. After a preemption of a --spot slice run this again; it
# resumes from the last checkpoint.
set -euo pipefail
: "${ZONE:?the zone of the slice}" "${BUCKET:?gs://BUCKET for data and runs}"
: "${REPOSITORY:?the address of this repository}"
name=${NAME:-byol}
type=${TYPE:-v5litepod-64}
runtime=${RUNTIME:-v2-alpha-tpuv5-lite} # must match the type

tpu() { gcloud compute tpus "$@" --zone="$ZONE"; }
state() { tpu queued-resources describe "$name" --format='value(state.state)' 2>/dev/null || true; }

# A preempted or failed slice keeps its name until it is deleted.
if [[ $(state) == @(SUSPENDED|FAILED) ]]; then
    tpu queued-resources delete "$name" --force --quiet
fi
if [[ -z $(state) ]]; then
    tpu queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
        --runtime-version="$runtime" --spot
fi
while now=$(state) && [[ $now != ACTIVE ]]; do
    if [[ $now == @(SUSPENDED|FAILED) ]]; then
        echo "$name is $now; see 'gcloud compute tpus queued-resources describe $name" \
            "--zone=$ZONE', and run this again to request another slice." >&2
        exit 1
    fi
    echo "$name is $now ..."
    sleep 60
done

# Files in a bucket are not locked: two runs in one folder would overwrite each other.
# (The pattern is anchored because the command line of this shell contains it, too.)
tpu tpu-vm ssh "$name" --worker=all --command="
    if pgrep -f '^[^ ]*python[^ ]* -m byol_jax[.]cli pretrain' >/dev/null; then
        echo \"\$(hostname) is training already: wait until it ends, or stop it with SIGTERM.\" >&2
        exit 1
    fi
"
# setsid: training continues after the connection ends. SIGTERM to the process of any host makes all
# processes save and stop.
tpu tpu-vm ssh "$name" --worker=all --command="
    set -e
    sudo apt-get update -qq && sudo apt-get install -qq python3.11-venv  # its own is Python 3.10
    if [[ -d byol_jax ]]; then
        git -C byol_jax pull --ff-only
    else
        git clone $REPOSITORY byol_jax
    fi
    cd byol_jax
    ./run.sh setup
    version=\$(.venv/bin/python -c 'import jax; print(jax.__version__)')
    .venv/bin/pip install --quiet \"jax[tpu]==\$version\"
    setsid --fork .venv/bin/python -m byol_jax.cli pretrain \
        --config=imagenet:300 \
        --workdir=$BUCKET/imagenet300 \
        --config.data.dir=$BUCKET/data \
        </dev/null >>pretrain.log 2>&1
"
echo "Started. The log on each host is byol_jax/pretrain.log."
