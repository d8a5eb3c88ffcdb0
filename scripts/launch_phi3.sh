#!/usr/bin/env bash
# Starts Phi-3 for the older sidecar with vLLM: Phi-3-mini on one GPU of its own, small enough for the watchdog. Reads
# only the environment: docs/vllm.md.  scripts/launch_phi3.sh [--dry-run] [-- more flags for vLLM]
set -euo pipefail
PREFIX=PHI3
KEY_NAME=PHI3_API_KEY
DTYPE_NAME=PHI3_DTYPE
# shellcheck source=scripts/lib/vllm.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/vllm.sh"
read_arguments "$@"

NAME="$(setting MODEL Phi-3)"
PORT="$(setting PORT 8019)"
read_sidecar_settings 1 4096
read_settings
launch
