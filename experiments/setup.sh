# Sourced by every experiment's `run` with its arguments: results lie beside it, and convsim is that of this checkout
# where there is one. $data is the first argument, or cifar10, which is then downloaded. All resume if stopped.
set -euo pipefail
data=${1:-cifar10}
if [ -e "$data" ]; then data=$(realpath "$data"); fi
cd "$(dirname "$0")"
PATH=$(realpath ../..)/.venv/bin:$PATH
compare() { convsim compare "$@" --no-page; }  # a picture, a table and the records are kept
