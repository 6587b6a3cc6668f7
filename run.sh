#!/usr/bin/env bash
# From a fresh clone to a network that trains: makes .venv with what
# requirements.txt pins and this package, editable, and runs the smoke test.
set -euo pipefail
# The caller's environment must not leak into ours, nor settings of where pip
# writes. Where pip finds packages stays the caller's choice.
unset CDPATH PYTHONHOME PYTHONPATH PIP_PREFIX PIP_PYTHON PIP_ROOT PIP_TARGET
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0
trap 'exit 130' INT
cd -P "$(dirname "${BASH_SOURCE[0]}")"

usage='usage: ./run.sh [options]         set up, then experiments/smoke_test.py
       ./run.sh setup             only set up
       ./run.sh test [args]       set up, then ruff and the fast tests
       ./run.sh test all [args]   the same with all tests (slow: the slow ones)
       ./run.sh help              this text
The arguments of a test are for pytest. The environment is .venv, made by the
first run, and again when requirements.txt changes.
PYTHON=/path/to/python3 ./run.sh chooses the interpreter (3.11, 3.12 or 3.13).
ACCELERATOR=cpu|cuda12|cuda13|tpu ./run.sh chooses the build of JAX; without it,
the build is the one for the accelerator that there is.'
py=.venv/bin/python stamp=.venv/run.sh.stamp command=smoke
fail() { printf 'run.sh: error: %s\n' "$1" >&2; exit "${2:-1}"; }

case "${1:-} ${2:-}" in
  'help '* | '-h '* | '--help '*) printf '%s\n' "$usage"; exit ;;
  'setup ') command=setup ;;
  'test all') command=test; set -- -m '' "${@:3}" ;;
  'test slow') command=test; set -- -m 'slow and not exhaustive' "${@:3}" ;;
  'test '*) command=test; shift ;;
  ' '* | -*) ;;
  *) fail "unknown command: $*"$'\n'"$usage" 2 ;;
esac

# The Python: $PYTHON, or the first that will do (TensorFlow 2.21 has no wheels
# for 3.14) of the one that made .venv and those on PATH.
all=($py python3 python3.13 python3.12 python3.11) seen='' python=''
if [ -n "${PYTHON:-}" ]; then all=("$PYTHON"); fi
ask='import sys
base = getattr(sys, "_base_executable", sys.executable)  # What made a venv.
print("%d.%d %s" % (sys.version_info[:2] + (base,)))'
for candidate in "${all[@]}"; do
  answer=$("$candidate" -c "$ask" 2>/dev/null) || continue
  read -r version python <<<"$answer"
  case $version in 3.11 | 3.12 | 3.13) break ;; esac
  seen+="; $candidate is Python $version" python=''
done
[ -n "$python" ] || fail "no Python 3.11, 3.12 or 3.13 (tried ${all[*]}$seen):\
 install one, or choose one with PYTHON=/path/to/python3"

# The accelerator that JAX's build is for, and why. The first lines of
# nvidia-smi name the newest CUDA that the driver can run.
accelerator=${ACCELERATOR:-cpu} why='ACCELERATOR says so'
cuda=$(nvidia-smi 2>/dev/null |
  sed -n 's/.*CUDA[A-Z ]* Version: *\([0-9]*\).*/\1/p' | sed -n 1p) || true
case ${ACCELERATOR:-},$cuda in
  cpu,* | cuda12,* | cuda13,* | tpu,*) ;;
  ?*,*) fail "ACCELERATOR is $ACCELERATOR; it is cpu, cuda12, cuda13 or tpu" 2;;
  ,) why='there is no GPU and no TPU'
    for device in "${DEV:-/dev}"/{accel,vfio/}[0-9]*; do
      [ ! -e "$device" ] || accelerator=tpu why="$device: a TPU VM"
    done ;;
  *) why="nvidia-smi: CUDA $cuda" accelerator=cuda$((cuda > 12 ? 13 : 12))
    [ "$cuda" -ge 12 ] || accelerator=cpu why+=', a driver too old for JAX' ;;
esac
# Without an accelerator, as on a login node, any build will do.
if [ -z "${ACCELERATOR:-}" ] && [ "$accelerator" = cpu ]; then
  read -r kept _ 2>/dev/null <$stamp || true
  case ${kept:-} in cuda12 | cuda13 | tpu) accelerator=$kept ;; esac
fi

# With the pinned setuptools, so that builds fetch nothing that is not pinned.
install() { $py -m pip install --no-build-isolation --use-pep517 "$@" >&2; }
# Installs $2..., without what they need (requirements*.txt list that), unless
# that was done with the file $1 as it is.
add() {
  cmp -s "$1" ".venv/$1" || { install --no-deps "${@:2}"; cp "$1" .venv/; }
}
made_from="$accelerator $version in $PWD, $(cksum requirements.txt)"
if [ ! -x $py ] || [ "$(cat $stamp 2>/dev/null)" != "$made_from" ]; then
  [ ! -e .venv ] || [ -e $stamp ] ||
    fail '.venv is not from run.sh: remove it, or give it another name'
  printf 'run.sh: making .venv (2.5 GB) with %s, and JAX for %s (%s)\n' \
    "$python" "$accelerator" "$why" >&2
  rm -rf .venv; mkdir .venv; : >$stamp
  "$python" -m venv .venv >&2
  # What the pins need is pinned, too. Bytecode is made when it is needed.
  install "$(grep '^setuptools==' requirements.txt)"
  install --no-deps --no-compile -r requirements.txt
  [ "$accelerator" = cpu ] || install --no-compile -c requirements.txt \
    "jax[$accelerator]==$(sed -n 's/^jax==//p' requirements.txt)"
  # Last, so that after a run that was cut off .venv is made anew.
  printf '%s\n' "$made_from" >$stamp
fi
add pyproject.toml -e .
[ $command != setup ] || exit 0
[ $command != smoke ] || exec $py experiments/smoke_test.py "$@"

add requirements-dev.txt -r requirements-dev.txt
status=0
$py -m ruff check . || status=1
$py -m ruff format --check . || status=1
# Of pytest's two processes, an idle one takes the last half of what the other
# has left: both work to the end, and files are seldom torn apart.
$py -m pytest -n 2 --dist=worksteal "$@" || status=$?
exit $status
