#!/usr/bin/env bash
# Starts Hermes for the older sidecar with vLLM: an 8B model in GPTQ on one GPU, small enough for the watchdog. Reads
# only the environment: docs/vllm.md.  scripts/launch_hermes.sh [--dry-run] [-- more flags for vLLM]
set -euo pipefail
PREFIX=HERMES
KEY_NAME=HERMES_API_KEY
DTYPE_NAME=HERMES_DTYPE
# shellcheck source=scripts/lib/vllm.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/vllm.sh"
read_arguments "$@"

NAME="$(setting MODEL Hermes)"
PORT="$(setting PORT 8018)"
read_sidecar_settings 0 6144
read_settings
launch
