# shellcheck shell=bash
# Starts one model with vLLM. Sourced by launch_lexi.sh, launch_hermes.sh and launch_phi3.sh, which say the name and
# the defaults; everything else is the same for all three. Reads only the environment.
# shellcheck disable=SC2153 # what is in capitals is set by the script that sources this

PROBE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/probe.py"
SCRIPT="$(basename "$0" .sh)"
COMMAND=()
KNOWN=""

say() { echo "$SCRIPT: $*" >&2; }
die() { say "$*"; exit 2; }

# setting NAME DEFAULT: the value of ${PREFIX}_NAME; an empty variable counts as unset.
setting() {
  local name="${PREFIX}_$1"
  printf '%s' "${!name:-$2}"
}

whole_number() { # NAME VALUE LEAST MOST
  if ! [[ $2 =~ ^[0-9]{1,9}$ ]] || ((10#$2 < $3 || 10#$2 > $4)); then die "$1=$2 is not a whole number from $3 to $4"; fi
}

fraction() { # NAME VALUE
  [[ $2 =~ ^(0?\.[0-9]+|1(\.0+)?)$ && ! $2 =~ ^0?\.0+$ ]] || die "$1=$2 is not a share above 0 and up to 1, such as 0.88"
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
  local name file key=""
  for name in "$@"; do
    file="${name}_FILE"
    if [[ -n ${!name:-} ]]; then
      key="${!name}"
    elif [[ -n ${!file:-} ]]; then
      key="$(cat -- "${!file}" 2>/dev/null)" || die "$file: cannot read ${!file}"
      key="${key#"${key%%[![:space:]]*}"}"
      key="${key%"${key##*[![:space:]]}"}"
    fi
    [[ -z $key ]] || break
  done
  for name in "$@"; do unset "$name" "${name}_FILE"; done
  unset VLLM_API_KEY
  if [[ -n $key ]]; then export VLLM_API_KEY="$key"; fi
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
  START_TIMEOUT_S="$(setting START_TIMEOUT_S 1800)"
  TRUST_REMOTE_CODE="$(flag "${PREFIX}_TRUST_REMOTE_CODE" "$(setting TRUST_REMOTE_CODE 1)")"
  COMPACT_JSON="$(flag "${PREFIX}_COMPACT_JSON" "$(setting COMPACT_JSON 1)")"
  CUSTOM_ALL_REDUCE="$(flag "${PREFIX}_CUSTOM_ALL_REDUCE" "$(setting CUSTOM_ALL_REDUCE 0)")"
  whole_number "${PREFIX}_PORT" "$PORT" 1 65535
  whole_number "${PREFIX}_MAX_NUM_SEQS" "$SEQUENCES" 1 100000
  whole_number "${PREFIX}_TENSOR_PARALLEL" "$PARALLEL" 1 1024
  whole_number "${PREFIX}_SWAP_SPACE_GB" "$SWAP_GB" 0 100000
  whole_number "${PREFIX}_START_TIMEOUT_S" "$START_TIMEOUT_S" 1 86400
  [[ $EXECUTOR == mp || $EXECUTOR == ray ]] || die "${PREFIX}_EXECUTOR=$EXECUTOR is neither mp nor ray"
  [[ $DEVICE == cuda || $DEVICE == cpu ]] || die "${PREFIX}_DEVICE=$DEVICE is neither cuda nor cpu"
  case "$DTYPE" in
    auto | half | float16 | bfloat16 | float | float32) ;;
    *) die "${DTYPE_NAME:-LLM_DTYPE}=$DTYPE is not auto, float16, bfloat16 or float32" ;;
  esac
  read_key "${PREFIX}_API_KEY" LLM_API_KEY
}

check_address() {
  local reach
  reach="$("$PYTHON" "$PROBE" address "$HOST" "$PORT" 2>&1)" || die "$reach Set ${PREFIX}_HOST or ${PREFIX}_PORT."
  if [[ $reach == open && -z ${VLLM_API_KEY:-} ]]; then
    die "$HOST is not loopback: set $KEY_NAME (or ${KEY_NAME}_FILE), or the model is open to the network"
  fi
}

# A path must be a whole model's folder. A hub's name (org/model) is fetched by vLLM, and only where a folder for it is named.
check_model() {
  [[ -n $MODEL ]] || die "${PREFIX}_MODEL_PATH is not set: the folder of the model to serve"
  if [[ -e $MODEL || $MODEL == [/.~]* || -z $DOWNLOAD_DIR ]]; then
    local told
    told="$("$PYTHON" "$PROBE" model "$MODEL" 2>&1)" || die "${PREFIX}_MODEL_PATH: $told"
    export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
  else
    [[ -d $DOWNLOAD_DIR && -w $DOWNLOAD_DIR ]] || die "${PREFIX}_DOWNLOAD_DIR: $DOWNLOAD_DIR is not a folder to write to"
    say "$MODEL is not a folder here: vLLM fetches it into $DOWNLOAD_DIR"
  fi
}

# Every card this start will use must be there and have the memory free that it will ask for.
check_gpus() {
  command -v nvidia-smi >/dev/null || die "no nvidia-smi on the path: no GPU driver here (${PREFIX}_DEVICE=cpu serves on the CPU)"
  local listed card index uuid total free found
  listed="$(nvidia-smi --query-gpu=index,uuid,memory.total,memory.free --format=csv,noheader,nounits)" || die "nvidia-smi does not answer: is the driver loaded?"
  local -a wanted=()
  IFS=', ' read -r -a wanted <<<"$CUDA_VISIBLE_DEVICES"
  # With ray the other hosts bring their own cards; on one host they must all be here.
  if [[ $EXECUTOR != ray && ${#wanted[@]} -lt $PARALLEL ]]; then
    die "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES names ${#wanted[@]} GPUs, ${PREFIX}_TENSOR_PARALLEL=$PARALLEL needs $PARALLEL"
  fi
  for card in "${wanted[@]:0:$PARALLEL}"; do
    found=""
    while IFS=', ' read -r index uuid total free; do
      if [[ $card == "$index" || ($card == GPU-* && $uuid == "$card"*) ]]; then found=1 && break; fi
    done <<<"$listed"
    [[ -n $found ]] || die "CUDA_VISIBLE_DEVICES: there is no GPU $card here; there are: $(cut -d, -f1 <<<"$listed" | tr '\n' ' ')"
    card_fits "$index" "$total" "$free"
  done
}

card_fits() { # INDEX TOTAL FREE
  [[ $2 =~ ^[0-9]+$ && $3 =~ ^[0-9]+$ ]] || die "GPU $1: nvidia-smi does not tell its memory"
  local needed
  if [[ -n $MEMORY_MIB ]]; then
    needed=$MEMORY_MIB
    ((MEMORY_MIB <= $2)) || die "GPU $1 has $2 MiB, ${PREFIX}_MEMORY_MIB=$MEMORY_MIB asks for more"
    # The watchdog reads the whole card, other programs included.
    if ((WATCHDOG_MIB > 0 && $2 - $3 + MEMORY_MIB > WATCHDOG_MIB)); then
      die "GPU $1 has $(($2 - $3)) MiB in use; with $MEMORY_MIB more it would stay above the watchdog's limit of $WATCHDOG_MIB MiB"
    fi
    # Rounded down: a share that is a little too small only costs a few blocks of cache.
    UTILISATION="$(awk -v want="$MEMORY_MIB" -v all="$2" 'BEGIN {printf "%.3f", int(want / all * 1000) / 1000}')"
  else
    needed="$(awk -v all="$2" -v share="$UTILISATION" 'BEGIN {printf "%d", all * share}')"
  fi
  (($3 >= needed)) || die "GPU $1 has $3 of $2 MiB free, this start needs $needed: end what uses it, or ask for less"
}

# The help with every flag. Old versions know only the plain word, and argparse then ends with 2.
help_of() {
  local code=0
  "$@" --help=all || code=$?
  if ((code == 2)); then code=0 && "$@" --help || code=$?; fi
  return "$code"
}

# Which way of starting works here, and which flags it knows: the installed vLLM is asked, not remembered.
ask_vllm() {
  local command scripts help
  scripts="$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')" || die "${PREFIX}_PYTHON: $PYTHON does not run"
  command="$scripts/vllm"
  [[ -x $command ]] || command="$(dirname "$(command -v "$PYTHON")")/vllm"
  local errors
  errors="$(mktemp)"
  if [[ -x $command ]] && help="$(help_of "$command" serve 2>"$errors")"; then
    COMMAND=("$command" serve "$MODEL")
  else
    if [[ -x $command ]]; then say "$command serve does not work here ($(tail -n 1 "$errors")); using the module instead"; fi
    COMMAND=("$PYTHON" -m vllm.entrypoints.openai.api_server)
    help="$(help_of "${COMMAND[@]}" 2>"$errors")" || die "$PYTHON has no vLLM that starts: $(tail -n 1 "$errors")"
    COMMAND+=(--model "$MODEL")
  fi
  rm -f "$errors"
  KNOWN="$("$PYTHON" "$PROBE" flags <<<"$help")"
}

knows() { grep -qxF -e "$1" <<<"$KNOWN"; }

# need FLAG [VALUE]: without it the server would not be what was asked for.
need() {
  knows "$1" || die "this vLLM does not know $1, without which this start makes no sense"
  COMMAND+=("$@")
}

# want FLAG [VALUE]: left out, with a line that says so, where this vLLM does not know it.
want() {
  if knows "$1"; then COMMAND+=("$@"); else say "this vLLM does not know $1: left out"; fi
}

# one_of FLAG...: the first name under which this vLLM knows a switch.
one_of() {
  local name
  for name in "$@"; do
    if knows "$name"; then COMMAND+=("$name") && return; fi
  done
  say "this vLLM knows none of $*: left out"
}

build_command() {
  need --served-model-name "$NAME"
  need --host "$HOST"
  need --port "$PORT"
  need --dtype "$DTYPE"
  need --max-model-len "$CONTEXT"
  need --max-num-seqs "$SEQUENCES"
  need --tensor-parallel-size "$PARALLEL"
  if [[ $DEVICE == cuda ]]; then
    need --gpu-memory-utilization "$UTILISATION"
    if ((PARALLEL > 1)); then need --distributed-executor-backend "$EXECUTOR"; fi
    # It gains nothing on cards without NVLink, and is known to hang there.
    if ((PARALLEL > 1 && CUSTOM_ALL_REDUCE == 0)); then one_of --disable-custom-all-reduce --no-custom-all-reduce; fi
    if ((SWAP_GB > 0)); then want --swap-space "$SWAP_GB"; fi
  fi
  if [[ -n $QUANTIZATION ]]; then need --quantization "$QUANTIZATION"; fi
  if ((TRUST_REMOTE_CODE == 1)); then want --trust-remote-code; fi
  if [[ -n $DOWNLOAD_DIR ]]; then want --download-dir "$DOWNLOAD_DIR"; fi
  want --scheduling-policy priority
  # Counted are those that run as well as those that wait. The gateway's processes together may hold more than fit at
  # once and keep their own lines: this bound is for a crowd that comes past them.
  want --max-num-queued-reqs "$((SEQUENCES * 4))"
  # Answers bound to a schema come without white space, which is else more than half of their tokens.
  if ((COMPACT_JSON == 1)); then
    want --structured-outputs-config '{"backend": "xgrammar", "disable_any_whitespace": true}'
  fi
  want --enable-request-id-headers
  want --enable-per-request-metrics
  # Prompts stay out of the log: new versions keep quiet by themselves, old ones must be told.
  if knows --disable-log-requests && ! knows --enable-log-requests; then COMMAND+=(--disable-log-requests); fi
  want --disable-uvicorn-access-log
  want --disable-fastapi-docs
  # The key guards only some of the paths; without this the others would answer anybody.
  if [[ -n ${VLLM_API_KEY:-} ]]; then need --middleware lexi_guard.Guard; fi
}

print_command() {
  local word line=""
  for word in "$@"; do line+="$(printf '%q' "$word") "; done
  echo "${line% }"
}

# launch [--dry-run] [--] [more flags for vLLM]: check, build, and become the server.
launch() {
  local dry=0
  if [[ ${1:-} == --dry-run ]]; then dry=1 && shift; fi
  if [[ ${1:-} == -- ]]; then shift; fi
  check_model
  check_address
  if [[ $DEVICE == cuda ]]; then check_gpus; fi
  ask_vllm
  build_command
  COMMAND+=("$@")
  if ((dry == 1)); then
    print_command "${COMMAND[@]}"
    return
  fi
  # It reports to its makers over the network unless told not to.
  export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
  PYTHONPATH="$(dirname "$PROBE")${PYTHONPATH:+:$PYTHONPATH}"
  export PYTHONPATH
  local reached="$HOST"
  case "$HOST" in 0.0.0.0) reached=127.0.0.1 ;; ::) reached="[::1]" ;; *:*) reached="[$HOST]" ;; esac
  say "starting; ready is said after a first completion"
  # A grandchild, so that nothing of ours hangs below the server; it ends with its one line.
  ("$PYTHON" "$PROBE" ready "http://$reached:$PORT" "$NAME" "$$" "$START_TIMEOUT_S" 2>&1 | sed -u "s/^/$SCRIPT: /" >&2 &)
  # The server takes this script's place: signals reach it and its exit code is ours.
  exec "${COMMAND[@]}"
}
