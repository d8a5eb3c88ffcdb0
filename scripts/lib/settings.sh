# shellcheck shell=bash
# How a launch script reads its arguments and its environment. Sourced by vllm.sh.
# shellcheck disable=SC2034,SC2153 # what is in capitals is set or read by the scripts beside this one

SCRIPT="$(basename "$0" .sh)"
LATER=75 # the exit code for what time can mend: whoever restarts tries again. A refusal is 2.
DRY=0
MORE=()

say() { echo "$SCRIPT: $*" >&2; }
die() { say "$*"; exit 2; }

# obstacle CODE WORDS: the server cannot start now. A dry run only says so, since it starts nothing.
obstacle() {
  local code="$1"
  shift
  say "$*"
  ((DRY == 1)) || exit "$code"
}

# What stands before --, anywhere, is for the script; what follows is for vLLM. A word it does not know starts nothing.
read_arguments() {
  while (($#)); do
    case "$1" in
      --) shift && break ;;
      --dry-run) DRY=1 ;;
      --help) sed -n '2,3s/^# //p' "$0" && exit ;;
      *) die "$1: before -- only --dry-run and --help are known; flags for vLLM stand after --" ;;
    esac
    shift
  done
  MORE=("$@")
}

# setting NAME DEFAULT: the value of ${PREFIX}_NAME; an empty variable counts as unset.
setting() {
  local name="${PREFIX}_$1"
  printf '%s' "${!name:-$2}"
}

# whole_number NAME VARIABLE LEAST MOST: checks what VARIABLE holds, and leaves it there without leading zeros, which
# the shell would take for another base.
whole_number() {
  local value="${!2}"
  if ! [[ $value =~ ^[0-9]{1,9}$ ]] || ((10#$value < $3 || 10#$value > $4)); then
    die "$1=$value is not a whole number from $3 to $4"
  fi
  printf -v "$2" '%d' "$((10#$value))"
}

fraction() { # NAME VALUE
  [[ $2 =~ ^0?\.[0-9]+$ && ! $2 =~ ^0?\.0+$ ]] || die "$1=$2 is not a share above 0 and below 1, such as 0.88"
}

flag() { # NAME VALUE; prints 1 or 0
  case "${2,,}" in
    1 | true | yes | on) echo 1 ;;
    0 | false | no | off) echo 0 ;;
    *) die "$1=$2: a flag is 1/true/yes/on or 0/false/no/off" ;;
  esac
}

# The key, from NAME or from the file NAME_FILE; vLLM reads it from the environment, so that `ps` does not show it.
read_key() {
  local name file key="" LC_ALL=C
  for name in "$@"; do
    file="${name}_FILE"
    if [[ -n ${!name:-} ]]; then
      key="${!name}"
    elif [[ -n ${!file:-} ]]; then
      key="$(cat -- "${!file}" 2>/dev/null)" || die "$file: cannot read ${!file}"
      key="${key#"${key%%[![:space:]]*}"}"
      key="${key%"${key##*[![:space:]]}"}"
      name="$file"
    fi
    if [[ -n $key ]]; then break; fi
  done
  # It travels in a header, and an error about such a header would quote it.
  [[ $key =~ ^[!-~]*$ ]] || die "$name: a key is one word of plain letters, digits and signs; this one holds something else"
  for name in "$@"; do unset "$name" "${name}_FILE"; done
  unset VLLM_API_KEY
  if [[ -n $key ]]; then export VLLM_API_KEY="$key"; fi
}

# What a model of the older sidecar has of its own: one card, and so much of it that the watchdog leaves it alone.
read_sidecar_settings() { # CARD CONTEXT
  PARALLEL=1
  UTILISATION=""
  DTYPE="$(setting DTYPE float16)"
  CONTEXT="$(setting CTX "$2")"
  SEQUENCES="$(setting MAX_NUM_SEQS 16)"
  whole_number "${PREFIX}_CTX" CONTEXT 1 10000000
  # Lexi's list of cards may stand in the same environment; this model has its own.
  local card
  card="$(setting GPU "$1")"
  if [[ -z $(setting GPU "") && -n ${CUDA_VISIBLE_DEVICES:-} && $CUDA_VISIBLE_DEVICES != "$card" ]]; then
    say "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES is not read here: GPU $card, unless ${PREFIX}_GPU names another"
  fi
  export CUDA_VISIBLE_DEVICES="$card"
  # The watchdog takes a fraction of a MiB too.
  WATCHDOG_MIB="${WATCHDOG_LIMIT_MIB:-10752}"
  if [[ $WATCHDOG_MIB =~ ^[0-9]+\.[0-9]*$ ]]; then WATCHDOG_MIB="${WATCHDOG_MIB%%.*}"; fi
  whole_number WATCHDOG_LIMIT_MIB WATCHDOG_MIB 0 10000000
  # What vLLM may fill: below the limit by what it does not count (CUDA's context, graphs, fragments).
  MEMORY_GIVEN="$(setting MEMORY_MIB "")"
  MEMORY_MIB="${MEMORY_GIVEN:-$((WATCHDOG_MIB > 2 * OVERHEAD_MIB ? WATCHDOG_MIB - OVERHEAD_MIB : 9728))}"
  whole_number "${PREFIX}_MEMORY_MIB" MEMORY_MIB 1 10000000
}

# What all models have in common; the caller has set NAME, DTYPE, CONTEXT, PARALLEL, PORT, SEQUENCES and the memory.
read_settings() {
  PYTHON="$(setting PYTHON "${LEXI_PYTHON:-python3}")"
  command -v "$PYTHON" >/dev/null || die "${PREFIX}_PYTHON: there is no $PYTHON"
  HOST="$(setting HOST 0.0.0.0)"
  MODEL="$(setting MODEL_PATH "")"
  DOWNLOAD_DIR="$(setting DOWNLOAD_DIR "")"
  QUANTIZATION="$(setting QUANTIZATION "")"
  EXECUTOR="$(setting EXECUTOR mp)"
  DEVICE="$(setting DEVICE cuda)"
  SWAP_GB="$(setting SWAP_SPACE_GB 12)"
  WAIT_S="$(setting WAIT_S 0)"
  START_TIMEOUT_S="$(setting START_TIMEOUT_S 1800)"
  STOP_TIMEOUT_S="$(setting STOP_TIMEOUT_S 20)"
  TRUST_REMOTE_CODE="$(flag "${PREFIX}_TRUST_REMOTE_CODE" "$(setting TRUST_REMOTE_CODE 1)")"
  COMPACT_JSON="$(flag "${PREFIX}_COMPACT_JSON" "$(setting COMPACT_JSON 1)")"
  CUSTOM_ALL_REDUCE="$(flag "${PREFIX}_CUSTOM_ALL_REDUCE" "$(setting CUSTOM_ALL_REDUCE 0)")"
  whole_number "${PREFIX}_PORT" PORT 1 65535
  whole_number "${PREFIX}_MAX_NUM_SEQS" SEQUENCES 1 100000
  whole_number "${PREFIX}_TENSOR_PARALLEL" PARALLEL 1 1024
  whole_number "${PREFIX}_SWAP_SPACE_GB" SWAP_GB 0 100000
  whole_number "${PREFIX}_WAIT_S" WAIT_S 0 86400
  whole_number "${PREFIX}_START_TIMEOUT_S" START_TIMEOUT_S 1 86400
  whole_number "${PREFIX}_STOP_TIMEOUT_S" STOP_TIMEOUT_S 0 3600
  [[ $EXECUTOR == mp || $EXECUTOR == ray ]] || die "${PREFIX}_EXECUTOR=$EXECUTOR is neither mp nor ray"
  [[ $DEVICE == cuda || $DEVICE == cpu ]] || die "${PREFIX}_DEVICE=$DEVICE is neither cuda nor cpu"
  case "$DTYPE" in
    auto | half | float16 | bfloat16 | float | float32) ;;
    *) die "${DTYPE_NAME:-LLM_DTYPE}=$DTYPE is not auto, float16, bfloat16 or float32" ;;
  esac
  read_key "${PREFIX}_API_KEY" LLM_API_KEY
}
