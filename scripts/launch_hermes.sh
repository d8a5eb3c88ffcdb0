#!/usr/bin/env bash
# Starts Hermes for the older sidecar with vLLM: an 8B model in GPTQ on one GPU, small enough for the watchdog. Reads
# only the environment: docs/vllm.md.  scripts/launch_hermes.sh [--dry-run] [-- more flags for vLLM]
set -euo pipefail
PREFIX=HERMES
KEY_NAME=HERMES_API_KEY
DTYPE_NAME=HERMES_DTYPE
# shellcheck source=scripts/lib/vllm.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/vllm.sh"
if [[ ${1:-} == --help ]]; then sed -n '2,3s/^# //p' "$0" && exit; fi

NAME="$(setting MODEL Hermes)"
DTYPE="$(setting DTYPE float16)"
CONTEXT="$(setting CTX 6144)"
PARALLEL=1
CUDA_VISIBLE_DEVICES="$(setting GPU "${CUDA_VISIBLE_DEVICES:-0}")"
export CUDA_VISIBLE_DEVICES
PORT="$(setting PORT 8018)"
SEQUENCES="$(setting MAX_NUM_SEQS 16)"
# What vLLM may fill: below the watchdog's limit by what it does not count (CUDA's context, graphs, fragments).
WATCHDOG_MIB="${WATCHDOG_LIMIT_MIB:-10752}"
whole_number WATCHDOG_LIMIT_MIB "$WATCHDOG_MIB" 0 10000000
MEMORY_MIB="$(setting MEMORY_MIB "$((10#$WATCHDOG_MIB > 2048 ? 10#$WATCHDOG_MIB - 1024 : 9728))")"
whole_number HERMES_MEMORY_MIB "$MEMORY_MIB" 1 10000000
whole_number HERMES_CTX "$CONTEXT" 1 10000000
UTILISATION=""
read_settings
launch "$@"
