#!/usr/bin/env bash
# From a fresh clone to a network that trains: makes .venv beside this file,
# with the versions that requirements.txt pins, and runs the smoke test in it.
# Needs Python 3.11 to 3.13 (TensorFlow 2.21 has no newer wheels), nothing else.
set -euo pipefail

# An environment of the caller's must not leak into ours, nor settings that send
# pip's files elsewhere. Where pip finds packages stays the caller's choice.
unset CDPATH PYTHONHOME PYTHONPATH PIP_PREFIX PIP_ROOT PIP_TARGET
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_USER=0

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
venv=$root/.venv
log=$venv/setup.log
# One line for each finished step of the set-up, saying what it was made from. A
# step empties the file before it starts, so that what is left of a killed one
# is never used.
stamp=$venv/run.sh.stamp
finished= # The stamp's lines that hold if the step under way fails cleanly.

usage() {
  cat <<'END'
usage: ./run.sh [options]            set up, then run experiments/smoke_test.py
       ./run.sh test [pytest args]   set up, then run ruff and the tests
       ./run.sh setup                only set up
       ./run.sh help                 this text

The environment is .venv; `source .venv/bin/activate` enters it. It is made by
the first run, and again when requirements.txt changes.
PYTHON=/path/to/python3 ./run.sh chooses the interpreter (3.11, 3.12 or 3.13).
END
}

say() {
  printf 'run.sh: %s\n' "$*" >&2
}

fail() {
  say "error: $*"
  exit 1
}

# Sets `python` to an interpreter that can make the environment: $PYTHON, or
# else the one that made .venv, or else the first suitable one on PATH.
find_python() {
  local candidates candidate answer version why=''
  local other='name another Python with PYTHON=/path/to/python3'
  if [ -n "${PYTHON:-}" ]; then
    candidates=$PYTHON
    why="PYTHON=$PYTHON does not run; it must be a Python 3.11, 3.12 or 3.13"
  else
    candidates=$venv/bin/python$'\n'$(
      type -aP python3 python3.13 python3.12 python3.11 || true
    )
  fi
  while IFS= read -r candidate; do
    # The interpreter below an environment, because the active environment may
    # be the very one that is replaced.
    answer=$("$candidate" -c '
import sys
print("%d.%d" % sys.version_info[:2])
print(getattr(sys, "_base_executable", None) or sys.executable)
' 2>/dev/null </dev/null) || continue
    version=${answer%%$'\n'*}
    python=${answer#*$'\n'}
    case $version in
      3.11 | 3.12 | 3.13) ;;
      *)
        why="$candidate is Python $version, but 3.11, 3.12 or 3.13 is needed;\
 install one of these, or $other"
        continue
        ;;
    esac
    # Some systems leave an empty ensurepip behind; it imports, but is no use.
    if "$python" -c 'import venv; from ensurepip import version' 2>/dev/null
    then
      return
    fi
    why="$python (Python $version) cannot make an environment: it lacks the\
 module venv or ensurepip; install it (on Debian and Ubuntu: apt install\
 python$version-venv), or $other"
  done <<<"$candidates"
  fail "${why:-no Python was found; install 3.11, 3.12 or 3.13, or $other}"
}

# The version of the Python in .venv; fails where it does not run or has no pip.
venv_version() {
  "$venv/bin/python" -c '
import pip, sys
print("%d.%d" % sys.version_info[:2])
' 2>/dev/null
}

# What step $1 would be made from now. The path belongs to it because scripts
# in .venv hold it. The checksum is POSIX's, which every machine has.
fingerprint() {
  case $1 in
    base) echo "base $(cksum <"$root/requirements.txt")" \
      "python $(venv_version) in $root" ;;
    package) echo "package $(cksum <"$root/pyproject.toml")" ;;
    test) echo "test $(cksum <"$root/requirements-dev.txt")" ;;
  esac
}

# Whether all the steps named are finished and up to date.
ready() {
  local step
  for step; do
    grep -qxF -- "$(fingerprint "$step")" "$stamp" 2>/dev/null || return 1
  done
}

# Whether $PYTHON, where it is set, has the version that .venv has.
python_is_the_chosen_one() {
  [ -z "${PYTHON:-}" ] || [ "$(venv_version)" = "$("$PYTHON" -c '
import sys
print("%d.%d" % sys.version_info[:2])
' 2>/dev/null)" ]
}

# Keeps a second run.sh out until this one is done or dead. The lock belongs to
# file descriptor 9, which pip inherits, so an orphaned pip is waited for too.
# (Python's, because macOS has no flock command.)
lock() {
  { exec 9>"$root/.venv.lock"; } 2>/dev/null ||
    fail "cannot write to $root; clone the repository to where you may write"
  "$python" -c '
import fcntl, sys
try:
  fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
  sys.stderr.write("run.sh: waiting for the set-up of another run.sh\n")
  fcntl.flock(9, fcntl.LOCK_EX)
except OSError:
  pass  # A file system without locks.
'
}

# Runs a command with its output in the log; a failure is explained in one line.
logged() {
  local output why
  if output=$("$@" 2>&1 </dev/null | tee -a "$log" 2>/dev/null); then
    return
  fi
  printf '%s' "$finished" 2>/dev/null >"$stamp" || true
  case $output in
    *'No space left on device'* | *'Disk quota exceeded'*)
      why="no space left on the disk: the environment takes 2.5 GB in $venv,\
 and making it 1 GB in ${TMPDIR:-/tmp} (TMPDIR); free some"
      ;;
    *NewConnectionError* | *ConnectTimeoutError* | *NameResolutionError* | \
      *ProxyError* | *SSLError* | *ReadTimeoutError* | *'Read timed out'* | \
      *'onnection broken'* | *'onnection aborted'* | *'is unreachable'*)
      why="pip cannot reach its package index: there is no network, or a proxy\
 or pip setting is wrong (.venv/bin/pip config list); mend that"
      ;;
    *'No matching distribution found for '*)
      why=${output##*No matching distribution found for }
      why="pip finds no ${why%%[[:space:]]*} for Python $(venv_version) on\
 $(uname -sm); try another Python with PYTHON=/path/to/python3"
      ;;
    *)
      why=$(grep -i '^error' <<<"$output" | tail -n 1) ||
        why=$(tail -n 1 <<<"$output")
      why="'${*##*/}' failed: ${why:-it printed nothing}; mend that"
      ;;
  esac
  fail "$why and run ./run.sh again (log: $log)"
}

# Builds use the pinned setuptools: nothing unpinned is fetched for them.
pip_install() {
  logged "$venv/bin/python" -m pip install --no-build-isolation --use-pep517 \
    --progress-bar off "$@"
}

# A new .venv. One that run.sh did not make is kept under another name.
make_venv() {
  local old=$venv.old why
  if [ -e "$stamp" ]; then
    say "removing .venv, which is unfinished or out of date"
    : >"$stamp"
    find "$venv/" -mindepth 1 ! -name "${stamp##*/}" -delete 2>/dev/null ||
      fail "cannot remove $venv (was it made by another user?); remove it and\
 run ./run.sh again"
  elif [ -e "$venv" ]; then
    while [ -e "$old" ]; do old=$old.old; done
    mv "$venv" "$old"
    say "run.sh did not make the .venv that is here; it is now $old"
  fi
  why=$({ mkdir -p "$venv" && : >"$stamp"; } 2>&1) ||
    fail "cannot make $venv: ${why##*: }"
  say "making .venv with $python"
  # In two steps, because venv does not pass on what ensurepip says.
  logged "$python" -m venv --without-pip "$venv"
  logged "$venv/bin/python" -m ensurepip --default-pip
}

install_base() {
  make_venv
  say "installing requirements.txt (0.6 GB to download, 2.5 GB on disk," \
    "a minute or more; log: $log)"
  pip_install "$(grep '^setuptools==' "$root/requirements.txt")"
  pip_install -r "$root/requirements.txt"
}

# Editable, so that `import nfnets` works from every folder and is the same as
# for people who install the package in an environment of their own.
install_package() {
  say "installing nfnets, editable"
  pip_install --no-deps -e "$root"
}

# Without dependencies, because the file lists them all, and jax2onnx asks for an
# older Orbax than the one that trains here; it never imports it.
install_test() {
  say "installing requirements-dev.txt"
  pip_install --no-deps -r "$root/requirements-dev.txt"
}

# Makes those of the steps named (base, package, test) that are not ready.
setup() {
  local step python
  if ready "$@" && python_is_the_chosen_one; then
    return
  fi
  trap 'say "interrupted; run ./run.sh again"; exit 130' INT
  find_python
  lock
  if [ -e "$stamp" ] && ! python_is_the_chosen_one; then
    : >"$stamp"
  fi
  for step; do
    if ready "$step"; then
      continue
    fi
    finished=
    if [ "$step" != base ]; then
      finished=$(grep -v "^$step " "$stamp")$'\n'
      : >"$stamp"
    fi
    "install_$step"
    printf '%s%s\n' "$finished" "$(fingerprint "$step")" >"$stamp"
  done
  exec 9>&-
  trap - INT
  say "the environment is ready ($SECONDS s)"
}

# Runs every check, whatever the others say.
run_tests() {
  local style=0 status=0
  cd "$root"
  "$venv/bin/python" -m ruff check . || style=1
  "$venv/bin/python" -m ruff format --check . || style=1
  # In two processes, because much of the time is compiling on one core.
  "$venv/bin/python" -m pytest -n 2 --dist=loadfile "$@" || status=$?
  if [ $style != 0 ]; then
    fail "ruff is not content (its report stands above that of the tests);\
 .venv/bin/ruff check --fix and .venv/bin/ruff format mend most of it"
  fi
  return $status
}

case ${1:-} in
  help | -h | --help)
    usage
    ;;
  setup)
    if [ $# -gt 1 ]; then
      say "error: setup takes no arguments, but got: ${*:2}"
      exit 2
    fi
    setup base package
    ;;
  test)
    shift
    setup base package test
    run_tests "$@"
    ;;
  '' | -*)
    setup base package
    cd "$root"
    exec "$venv/bin/python" experiments/smoke_test.py "$@"
    ;;
  *)
    say "error: unknown command '$1'"
    usage >&2
    exit 2
    ;;
esac
