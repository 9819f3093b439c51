#!/usr/bin/env bash
# The way in: `./run.sh help` says what it does. Everything runs in .venv with the pinned requirements.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

venv=.venv
python=${BYOL_PYTHON:-$venv/bin/python}
quickstart=runs/quickstart
child=

usage() {
    cat <<'EOF'
Usage: ./run.sh [COMMAND [ARGUMENTS]]

  (nothing)      quickstart: set up, pre-train a small encoder on the embedded dataset, evaluate and
                 export it; everything lands in runs/quickstart, and a second run resumes there
  setup          make .venv and install the pinned requirements
  pretrain ...   python -m byol_jax.cli.pretrain ..., set up first if needed
  launch-local N ...
                 the same in N processes on this machine, which share its GPUs
  evaluate ...   python -m byol_jax.cli.evaluate ...
  export ...     python -m byol_jax.cli.export ...
  import-reference ...
                 python -m byol_jax.cli.import_reference ...
  check-data ... python -m byol_jax.cli.check_data ...: lists what is wrong with images
  data-service ...
                 python -m byol_jax.cli.data_service ...: decodes for hosts that cannot keep up
  bench ...      how fast it is on this machine, beside others: python -m experiments.bench ...
  faults ...     kills, damages and starves runs, and prints what became of them
  test ...       ruff, then pytest ... (what continuous integration runs); installs PyTorch and
                 others too, which the tests of the exchange formats compare with
  lint           ruff alone
  help           this text

Relative paths in arguments start from the folder of this script.
BYOL_PYTHON=/path/to/python uses that interpreter with the packages it has: nothing is installed.
For a GPU: ./run.sh setup, then .venv/bin/pip install "jax[cuda12]==$(.venv/bin/python -c 'import jax; print(jax.__version__)')"
EOF
}

fail() {
    echo "run.sh: $1" >&2
    exit "${2:-1}"
}

# Runs one step of several in its own process group: every signal reaches it once, from here, and the
# script stops too, although pretrain answers an interrupt by saving and leaving with success.
step() {
    local status=0
    set -m
    "$@" &
    child=$!
    set +m
    wait "$child" || status=$?
    child=
    return "$status"
}

stop() { # signal, exit code
    # A second signal is passed on as well: the step decides what it means.
    trap 'kill -s '"$1"' -- "-$child" 2>/dev/null' "$1"
    if [[ -n $child ]]; then
        kill -s "$1" -- "-$child" 2>/dev/null || true
        while kill -0 "$child" 2>/dev/null; do
            wait "$child" || true
        done
    fi
    exit "$2"
}
trap 'stop INT 130' INT
trap 'stop TERM 143' TERM
trap 'stop HUP 129' HUP

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11, 3.12 or 3.13 found: install one, or name yours with BYOL_PYTHON=/path/to/python."
}

# Installs a requirements file into .venv unless what it asks for is what was installed last.
setup() { # requirements file, options of pip
    if [[ -n ${BYOL_PYTHON:-} ]]; then
        command -v "$python" >/dev/null || fail "BYOL_PYTHON is $python, which is not a program: name a Python 3.11 or later."
        return
    fi
    if [[ ! -x $python ]]; then
        local base
        base=$(find_python)
        # Removed on failure: half an environment would be taken for a whole one next time.
        "$base" -m venv "$venv" || {
            rm -rf "$venv"
            fail "$base cannot make a virtual environment: install its venv package (python3-venv on Debian and Ubuntu)."
        }
    fi
    local stamp=$venv/installed-$1 wanted
    wanted=$(cat requirements.txt "$1")
    if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
        echo "Installing $1 into $venv ..."
        step "$python" -m pip install --quiet --disable-pip-version-check "${@:2}" -r "$1" || fail "pip could not install $1: its message above says why."
        printf '%s\n' "$wanted" >"$stamp"
    fi
}

lint() {
    step "$python" -m ruff check .
    step "$python" -m ruff format --check .
}

run_quickstart() {
    step "$python" -m byol_jax.cli.pretrain --config=byol_jax/presets/quickstart.py --workdir="$quickstart"
    step "$python" -m byol_jax.cli.evaluate --checkpoint="$quickstart" --protocol=logistic
    step "$python" -m byol_jax.cli.evaluate --checkpoint="$quickstart" --protocol=knn
    step "$python" -m byol_jax.cli.export --checkpoint="$quickstart" --output="$quickstart/export"
    cat <<EOF

Done. In $PWD/$quickstart:
  export/              the trained encoder: byol_jax.load("$quickstart/export")
  eval/*.json          its accuracies, beside raw pixels and a random encoder
  views.png            the pairs of views it was trained on
  curves.png           loss, health and accuracy by step
  metrics.jsonl        the same as numbers (events.*: for TensorBoard)
  checkpoints/         the whole training state; config.json: every setting
Next: your own images, in README.md.
EOF
}

command=${1:-quickstart}
shift || true
case $command in
    quickstart)
        setup requirements.txt
        run_quickstart
        ;;
    setup) setup requirements.txt ;;
    pretrain | launch-local | evaluate | export | import-reference | check-data | data-service | bench)
        setup requirements.txt
        exec "$python" -m "experiments.${command//-/_}" "$@"
        ;;
    faults)
        setup requirements-dev.txt
        exec "$python" -m tests.faults "$@"
        ;;
    test)
        setup requirements-dev.txt
        setup requirements-interop.txt
        setup requirements-interop-no-deps.txt --no-deps
        lint
        # A process for each core; a file stays whole, as its tests share what was compiled. The
        # files in the order of tests/conftest.py, the longest first.
        exec "$python" -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder "$@"
        ;;
    lint)
        setup requirements-dev.txt
        lint
        ;;
    help | -h | --help) usage ;;
    *) fail "unknown command '$command': ./run.sh help lists the commands." 2 ;;
esac
