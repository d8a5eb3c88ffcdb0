#!/usr/bin/env bash
# Starts Lexi, the desk's model, with vLLM over several GPUs: docs/vllm.md. Reads only the environment.
#   scripts/launch_lexi.sh [--dry-run] [-- more flags for vLLM]
set -euo pipefail
PREFIX=LEXI
KEY_NAME=LLM_API_KEY
NAME_NAME=LLM_MODEL
CONTEXT_NAME=LLM_MAX_TOKENS
MEMORY_NAME=LLM_GPU_UTILIZATION
# shellcheck source=scripts/lib/vllm.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/vllm.sh"
read_arguments "$@"

NAME="${LLM_MODEL:-Lexi}"
DTYPE="${LLM_DTYPE:-float16}"
CONTEXT="${LLM_MAX_TOKENS:-4096}"
UTILISATION="${LLM_GPU_UTILIZATION:-0.88}"
PARALLEL="$(setting TENSOR_PARALLEL 4)"
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0,1,2,3}"
PORT="$(setting PORT 8008)"
SEQUENCES="$(setting MAX_NUM_SEQS 64)"
MEMORY_MIB=""
whole_number LLM_MAX_TOKENS CONTEXT 1 10000000
fraction LLM_GPU_UTILIZATION "$UTILISATION"
read_settings
launch
