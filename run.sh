#!/usr/bin/env bash
# From a fresh clone to a network that trains: finds a Python 3.11 to 3.13
# (TensorFlow 2.21 has no newer wheels), makes .venv with what requirements.txt
# pins and this package, editable, and runs the smoke test in it.
set -euo pipefail

# An environment of the caller's must not leak into ours, nor settings that send
# pip's files elsewhere. Where pip finds packages stays the caller's choice.
unset CDPATH PYTHONHOME PYTHONPATH PIP_PREFIX PIP_PYTHON PIP_ROOT PIP_TARGET
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0
trap 'exit 130' INT
cd -P "$(dirname "${BASH_SOURCE[0]}")"

usage='usage: ./run.sh [options]         set up, then experiments/smoke_test.py
       ./run.sh setup             only set up
       ./run.sh test [args]       set up, then ruff and the fast tests
       ./run.sh test all [args]   the same with all tests
       ./run.sh test slow [args]  the same with the slow tests alone
       ./run.sh help              this text
The arguments of a test are for pytest. The environment is .venv, made by the
first run, and again when requirements.txt changes.
PYTHON=/path/to/python3 ./run.sh chooses the interpreter (3.11, 3.12 or 3.13).
ACCELERATOR=cpu|cuda12|cuda13|tpu ./run.sh chooses the build of JAX; without it,
the build is the one for the accelerator that there is.'

fail() {
  printf 'run.sh: error: %s\n' "$1" >&2
  exit "${2:-1}"
}

# Sets `python` and its `version`: $PYTHON, or the first that will do of the one
# that made .venv and those on PATH.
find_python() {
  local all=(.venv/bin/python python3 python3.13 python3.12 python3.11)
  local candidate answer seen='' ask='import sys
base = getattr(sys, "_base_executable", sys.executable)  # What made a venv.
print("%d.%d %s" % (sys.version_info[:2] + (base,)))'
  if [ -n "${PYTHON:-}" ]; then all=("$PYTHON"); fi
  for candidate in "${all[@]}"; do
    answer=$("$candidate" -c "$ask" 2>/dev/null) || continue
    read -r version python <<<"$answer"
    case $version in 3.11 | 3.12 | 3.13) return ;; esac
    seen+="; $candidate is Python $version"
  done
  fail "no Python 3.11, 3.12 or 3.13 (tried ${all[*]}$seen): install one, or\
 choose one with PYTHON=/path/to/python3"
}

# Sets `accelerator`, which JAX's build is for, and `found`, the reason.
find_accelerator() {
  local cuda device
  accelerator=${ACCELERATOR:-cpu} found='there is no GPU and no TPU'
  case ${ACCELERATOR:-} in
    '') ;;
    cpu | cuda12 | cuda13 | tpu) found='ACCELERATOR says so'; return ;;
    *) fail "ACCELERATOR is $ACCELERATOR; it is cpu, cuda12, cuda13 or tpu" 2 ;;
  esac
  # Its first lines name the newest CUDA that the driver can run.
  cuda=$(nvidia-smi 2>/dev/null |
    sed -n 's/.*CUDA[A-Z ]* Version: *\([0-9]*\).*/\1/p' | sed -n 1p) || true
  if [ -n "$cuda" ]; then
    found="nvidia-smi: CUDA $cuda"
    if [ "$cuda" -ge 13 ]; then accelerator=cuda13; fi
    if [ "$cuda" -eq 12 ]; then accelerator=cuda12; fi
    if [ "$cuda" -lt 12 ]; then found+=', a driver too old for JAX'; fi
    return
  fi
  for device in "${DEV:-/dev}"/accel[0-9]* "${DEV:-/dev}"/vfio/[0-9]*; do
    if [ -e "$device" ]; then accelerator=tpu found="$device: a TPU VM"; fi
  done
}

# With the pinned setuptools, so that builds fetch nothing that is not pinned.
install() {
  .venv/bin/python -m pip install --no-build-isolation --use-pep517 "$@" >&2
}

# Installs $2... unless that was done with the file $1 as it is; not what they
# depend on, which requirements*.txt lists.
add() {
  if cmp -s "$1" ".venv/$1"; then return; fi
  install --no-deps "${@:2}"
  cp "$1" .venv/
}

set_up() {
  find_python
  find_accelerator
  # Written last, so that after a run that was cut off .venv is made anew.
  local stamp=.venv/run.sh.stamp jax kept
  # Without an accelerator, as on a login node, any build will do.
  if [ -z "${ACCELERATOR:-}" ] && [ "$accelerator" = cpu ]; then
    read -r kept _ 2>/dev/null <"$stamp" || true
    case ${kept:-} in cuda12 | cuda13 | tpu) accelerator=$kept ;; esac
  fi
  local made_from="$accelerator $version in $PWD, $(cksum requirements.txt)"
  if [ ! -x .venv/bin/python ] ||
    [ "$(cat "$stamp" 2>/dev/null)" != "$made_from" ]; then
    [ ! -e .venv ] || [ -e "$stamp" ] ||
      fail '.venv is not from run.sh: remove it, or give it another name'
    printf 'run.sh: making .venv (2.5 GB) with %s, and JAX for %s (%s)\n' \
      "$python" "$accelerator" "$found" >&2
    rm -rf .venv
    mkdir .venv
    : >"$stamp"
    "$python" -m venv .venv >&2
    # What the pins need is pinned, too. Bytecode is made when it is needed.
    install "$(grep '^setuptools==' requirements.txt)"
    install --no-deps --no-compile -r requirements.txt
    if [ "$accelerator" != cpu ]; then
      jax=$(sed -n 's/^jax==//p' requirements.txt)
      install --no-compile -c requirements.txt "jax[$accelerator]==$jax"
    fi
    printf '%s\n' "$made_from" >"$stamp"
  fi
  add pyproject.toml -e .
}

# Of pytest's two processes, an idle one takes the last half of what the other
# has left: both work to the end, and files are seldom torn apart.
run_tests() {
  local status=0
  add requirements-dev.txt -r requirements-dev.txt
  .venv/bin/python -m ruff check . || status=1
  .venv/bin/python -m ruff format --check . || status=1
  .venv/bin/python -m pytest -n 2 --dist=worksteal "$@" || status=$?
  exit $status
}

case "${1:-} ${2:-}" in
  'help '* | '-h '* | '--help '*) printf '%s\n' "$usage" ;;
  'setup ') set_up ;;
  'test all') set_up; run_tests -m '' "${@:3}" ;;
  'test slow') set_up; run_tests -m 'slow and not exhaustive' "${@:3}" ;;
  'test '*) set_up; run_tests "${@:2}" ;;
  ' '* | -*) set_up; exec .venv/bin/python experiments/smoke_test.py "$@" ;;
  *) fail "unknown command: $*"$'\n'"$usage" 2 ;;
esac
