#!/usr/bin/env bash
# Entry point of a checkout; `./run.sh help` lists the commands. Everything runs in .venv, with the
# pinned requirements.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

venv=.venv
python=${BYOL_PYTHON:-$venv/bin/python}
quickstart=runs/quickstart
child=

usage() {
    cat <<'EOF'
Usage: ./run.sh [COMMAND [ARGUMENTS]]

  (no command)   quickstart: install, pre-train a small encoder on the embedded data set, evaluate
                 and export it in runs/quickstart; run again, it resumes there
  setup          create .venv and install the pinned requirements

  pretrain, evaluate, report, compare, transfer, finetune, search, dedupe, label, export, import-reference,
  check-data, data-service, launch-local, bench
                 the commands of byol-jax, installed first if necessary;
                 ./run.sh COMMAND --help describes each

  test ...       ruff, then pytest ...: what continuous integration runs. Also installs PyTorch and
                 other packages, which the export formats are compared with
  test-lowest    install the lowest supported version of each dependency in .venv-lowest, and test
                 the algorithm and the commands with them
  docs           build the documentation as a site, into site/
  faults         kill, damage and starve runs; report which of them recovered
  lint           ruff alone
  help           this text

Relative paths are relative to this folder.
BYOL_PYTHON=/path/to/python uses that interpreter and its packages; nothing is installed then.
For a GPU: ./run.sh setup, then .venv/bin/pip install "jax[cuda12]==$(.venv/bin/python -c 'import jax; print(jax.__version__)')"
EOF
}

fail() {
    echo "run.sh: $1" >&2
    exit "${2:-1}"
}

# Runs one of several steps in its own process group: each signal reaches it once, from here, and the
# script stops too, although pretrain saves on an interrupt and exits with code 0.
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
    # A second signal is passed on as well; the step decides what to do.
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
    fail "no Python 3.11, 3.12 or 3.13 found: install one, or set BYOL_PYTHON=/path/to/python."
}

# Makes a virtual environment.
make_venv() { # folder
    local base
    base=$(find_python)
    # Removed on failure: the next start would take an incomplete environment for a complete one.
    "$base" -m venv "$1" || {
        rm -rf "$1"
        fail "$base cannot make a virtual environment: install its venv package (python3-venv on Debian and Ubuntu)."
    }
}

# Installs a requirements file into .venv, unless the same requirements were installed last time.
setup() { # requirements file, options of pip
    if [[ -n ${BYOL_PYTHON:-} ]]; then
        command -v "$python" >/dev/null || fail "BYOL_PYTHON is $python, which is not a program: set it to a Python 3.11, 3.12 or 3.13."
        return
    fi
    [[ -x $python ]] || make_venv "$venv"
    local stamp=$venv/installed-$1 wanted
    wanted=$(cat requirements.txt "$1")
    if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
        echo "Installing $1 into $venv ..."
        step "$python" -m pip install --quiet --disable-pip-version-check "${@:2}" -r "$1" || fail "pip could not install $1; its message is above."
        printf '%s\n' "$wanted" >"$stamp"
    fi
}

lint() {
    step "$python" -m ruff check .
    step "$python" -m ruff format --check .
}

run_quickstart() {
    step "$python" -m byol_jax.cli pretrain --config=quickstart --workdir="$quickstart" --noreport
    step "$python" -m byol_jax.cli evaluate --checkpoint="$quickstart" --protocol=logistic,knn
    step "$python" -m byol_jax.cli export --checkpoint="$quickstart" --output="$quickstart/export"
    step "$python" -m byol_jax.cli report "$quickstart" --images=2000
    cat <<EOF

Done. In $PWD/$quickstart:
  export/              the trained encoder: byol_jax.load("$quickstart/export")
  eval/*.json          its accuracies, with those of raw pixels and of a random encoder
  views.png            pairs of views that it was trained on
  curves.png           loss, health and accuracy by step
  metrics.jsonl        the same as numbers (events.*: for TensorBoard)
  checkpoints/         the complete training state; config.json: every setting
  report.html          a page about all of this, to open in a browser
Next: train on your own images, as in README.md.
The page: $PWD/$quickstart/report.html
EOF
}

# The dependencies of pyproject.toml, each at its lower bound, as a requirements file.
lower_bounds() { # python
    "$1" - <<'EOF'
import re
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
for line in [*project["dependencies"], *extras["train"], *extras["export"], *extras["dev"]]:
    print(re.sub(r">=([\w.]+)[^;]*", r"==\1", line))
EOF
}

test_lowest() {
    local lowest=.venv-lowest
    [[ -x $lowest/bin/python ]] || make_venv "$lowest"
    lower_bounds "$lowest/bin/python" >"$lowest/lowest.txt"
    echo "Installing the lowest versions into $lowest ..."
    step "$lowest/bin/python" -m pip install --quiet --disable-pip-version-check -r "$lowest/lowest.txt"
    # The commands train, evaluate, export and load. Old versions may warn.
    exec "$lowest/bin/python" -m pytest -W default tests/core/test_byol.py tests/cli/test_commands.py "$@"
}

command=${1:-quickstart}
shift || true
case $command in
    quickstart)
        setup requirements.txt
        run_quickstart
        ;;
    setup) setup requirements.txt ;;
    pretrain | launch-local | evaluate | report | compare | transfer | finetune | search | dedupe | label | export | import-reference | check-data | data-service | bench)
        setup requirements.txt
        exec "$python" -m byol_jax.cli "$command" "$@"
        ;;
    faults)
        setup requirements-dev.txt
        exec "$python" -m tests.faults "$@"
        ;;
    docs)
        setup requirements-docs.txt
        # The variable silences a notice about the next version of MkDocs.
        NO_MKDOCS_2_WARNING=1 step "$python" -m mkdocs build --strict
        echo "The site: $PWD/site/index.html (its search needs a server: python3 -m http.server -d site)"
        ;;
    test)
        setup requirements-dev.txt
        setup requirements-interop.txt
        setup requirements-interop-no-deps.txt --no-deps
        setup requirements-docs.txt
        lint
        # One process per core. The tests of a file share compiled programs and stay together; files
        # run in the order of tests/conftest.py, the longest first.
        # One more than there are cores, because some tests wait.
        exec "$python" -m pytest --numprocesses="$(($(getconf _NPROCESSORS_ONLN) + 1))" --dist=loadfile --no-loadscope-reorder "$@"
        ;;
    test-lowest) test_lowest "$@" ;;
    lint)
        setup requirements-dev.txt
        lint
        ;;
    help | -h | --help) usage ;;
    *) fail "unknown command '$command': ./run.sh help lists the commands." 2 ;;
esac
