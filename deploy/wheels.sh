#!/bin/sh
# Fills the wheelhouse that the Dockerfiles install from: what each service needs in wheels/<service>, our own wheel
# in wheels/app. Run it with the Python that the images have (3.11, Linux): wheels are made for one Python.
#
# Without GPUs, PIP_EXTRA_INDEX_URL set to PyTorch's CPU index keeps CUDA out of wheels/cloud.
set -eu

cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[ $# -gt 0 ] || set -- edge router cloud

"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) or sys.platform != "linux")' || {
    echo "wheels.sh: $python is not Python 3.11 on Linux, which the images run; set PYTHON" >&2
    exit 1
}

# Built from a copy: setuptools keeps deleted modules in build/, and the wheel would have them.
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
trap 'exit 130' INT TERM
tar -c --exclude=__pycache__ pyproject.toml README.md LICENSE \
    sdk protos common kernels cache edge cloud router training bench models | tar -x -C "$source"

rm -rf wheels/app
mkdir -p wheels/app
"$python" -m pip wheel --quiet --no-deps --wheel-dir wheels/app "$source"

for service; do
    rm -rf "wheels/$service"
    mkdir -p "wheels/$service"
    # Up to Python 3.11.2, which Debian 12 has, redis wants a wheel more than the Python here may ask for.
    more=
    [ "$service" != router ] || more=async-timeout
    "$python" -m pip wheel --quiet --wheel-dir "wheels/$service" "$(echo wheels/app/tiermesh-*.whl)[$service]" $more
    # Ours lies in wheels/app alone: a change of the code then leaves the layer of the dependencies as it was.
    rm "wheels/$service"/tiermesh-*.whl
    du -sh "wheels/$service"
done
