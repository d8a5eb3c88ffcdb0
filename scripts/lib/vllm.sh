# shellcheck shell=bash
# Starts one model with vLLM. Sourced by launch_lexi.sh, launch_hermes.sh and launch_phi3.sh, which say the name and
# the defaults; everything else is the same for all three. Reads only the environment.
# shellcheck disable=SC2153 # what is in capitals is set by the script that sources this

LIB="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
PROBE="$LIB/probe.py"
COMMAND=()
KNOWN=""
# shellcheck source=scripts/lib/settings.sh
source "$LIB/settings.sh"
# shellcheck source=scripts/lib/place.sh
source "$LIB/place.sh"

# The help with every flag. Old versions know only the plain word, and argparse then ends with 2.
help_of() {
  local code=0
  "$@" --help=all || code=$?
  if ((code == 2)); then code=0 && "$@" --help || code=$?; fi
  return "$code"
}

# Which way of starting works here, and which flags it knows: the installed vLLM is asked, not remembered.
ask_vllm() {
  local command scripts help errors last
  scripts="$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')" || die "${PREFIX}_PYTHON: $PYTHON does not run"
  command="$scripts/vllm"
  [[ -x $command ]] || command="$(dirname "$(command -v "$PYTHON")")/vllm"
  errors="$(mktemp)"
  if [[ -x $command ]] && help="$(help_of "$command" serve 2>"$errors")"; then
    COMMAND=("$command" serve "$MODEL")
  else
    if [[ -x $command ]]; then say "$command serve does not work here ($(tail -n 1 "$errors")); using the module instead"; fi
    COMMAND=("$PYTHON" -m vllm.entrypoints.openai.api_server)
    help="$(help_of "${COMMAND[@]}" 2>"$errors")" || help=""
    COMMAND+=(--model "$MODEL")
  fi
  last="$(tail -n 1 "$errors")"
  rm -f "$errors"
  [[ -n $help ]] || die "$PYTHON has no vLLM that starts: $last"
  KNOWN="$("$PYTHON" "$PROBE" flags <<<"$help")"
}

knows() { [[ $'\n'$KNOWN$'\n' == *$'\n'"$1"$'\n'* ]]; }

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
  # What is answered when the server is told to end may be finished; by default vLLM breaks it off.
  if ((STOP_TIMEOUT_S > 0)); then want --shutdown-timeout "$STOP_TIMEOUT_S"; fi
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

# What the checks and the wait for readiness rest on is set by variables alone. vLLM also takes a flag with underscores,
# with its value after =, and by its beginning.
refuse_own_flags() {
  local spread=""
  if [[ $PREFIX == LEXI ]]; then spread=LEXI_TENSOR_PARALLEL; fi
  local -a own=(
    --model="${PREFIX}_MODEL_PATH" --served-model-name="${NAME_NAME:-${PREFIX}_MODEL}" --host="${PREFIX}_HOST" --port="${PREFIX}_PORT"
    --max-model-len="${CONTEXT_NAME:-${PREFIX}_CTX}" --max-num-seqs="${PREFIX}_MAX_NUM_SEQS"
    --tensor-parallel-size="$spread" -tp="$spread"
    --gpu-memory-utilization="${MEMORY_NAME:-${PREFIX}_MEMORY_MIB}" --distributed-executor-backend="${PREFIX}_EXECUTOR"
    --api-key="$KEY_NAME" --shutdown-timeout="${PREFIX}_STOP_TIMEOUT_S"
    --uds= --root-path= --ssl-keyfile= --ssl-certfile= --ssl-ca-certs= --ssl-cert-reqs= --ssl-ciphers= --config= --headless= --grpc=
  )
  local word given pair instead
  for word in "${MORE[@]}"; do
    given="${word%%=*}"
    given="${given//_/-}"
    [[ $given == --?* || $given == -tp ]] || continue
    for pair in "${own[@]}"; do
      if [[ ${pair%%=*} == "$given"* ]]; then
        instead="leave it out"
        if [[ -n ${pair#*=} ]]; then instead="set ${pair#*=} instead"; fi
        die "$given after -- would go past the checks of this script: $instead"
      fi
    done
  done
}

# launch: check, build, and become the server.
launch() {
  refuse_own_flags
  wait_for_place
  ask_vllm
  build_command
  COMMAND+=("${MORE[@]}")
  if ((DRY == 1)); then
    print_command "${COMMAND[@]}"
    return
  fi
  # It reports to its makers over the network unless told not to. And nvidia-smi counts the cards by their place on the
  # bus, CUDA by their speed: those that were looked at must be those that are used.
  export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 CUDA_DEVICE_ORDER=PCI_BUS_ID
  export PYTHONPATH="$LIB${PYTHONPATH:+:$PYTHONPATH}"
  local reached="$HOST"
  case "$HOST" in 0.0.0.0) reached=127.0.0.1 ;; ::) reached="[::1]" ;; *:*) reached="[$HOST]" ;; esac
  say "starting; ready is said after a first completion"
  # A grandchild, so that nothing of ours hangs below the server; it ends with its one line.
  ("$PYTHON" "$LIB/ready.py" "http://$reached:$PORT" "$NAME" "$$" "$START_TIMEOUT_S" 2>&1 | sed -u "s/^/$SCRIPT: /" >&2 &)
  # The server takes this script's place: signals reach it and its exit code is ours.
  exec "${COMMAND[@]}"
}
