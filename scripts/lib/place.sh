# shellcheck shell=bash
# Whether a model can be served here: its folder, the address, the cards. Sourced by vllm.sh.
# shellcheck disable=SC2153 # what is in capitals is set by the scripts beside this one

OVERHEAD_MIB=1024 # what a server takes of a card beyond the share that vLLM counts

check_place() {
  check_model
  check_address
  if [[ $DEVICE == cuda ]]; then check_cards; fi
}

# After a crash memory and port are not free at once, and after a boot the driver, an address or a disk may still be
# missing. For so long somebody who restarts (systemd) may let us wait; by hand the default is not to.
wait_for_place() {
  local told before="" code
  while ((DRY == 0 && SECONDS < WAIT_S)); do
    code=0
    told="$(check_place 2>&1)" || code=$?
    if ((code != LATER)); then break; fi
    if [[ $told != "$before" ]]; then
      echo "$told" >&2
      say "waiting at most $((WAIT_S - SECONDS)) s for that"
    fi
    before="$told"
    sleep 1
  done
  check_place
}

check_address() {
  local told reach code=0
  told="$("$PYTHON" "$PROBE" address "$HOST" "$PORT" 2>&1)" || code=$?
  # The first word is loopback or open; why nobody can listen there now stands below it.
  reach="${told%%$'\n'*}"
  if ((code == LATER)); then
    obstacle "$LATER" "${told#*$'\n'} Set ${PREFIX}_HOST or ${PREFIX}_PORT, or end that."
  elif ((code != 0)); then
    die "$told Set ${PREFIX}_HOST or ${PREFIX}_PORT."
  fi
  if [[ $reach == open && -z ${VLLM_API_KEY:-} ]]; then
    die "$HOST is not loopback: set $KEY_NAME (or ${KEY_NAME}_FILE), or the model is open to the network"
  fi
}

# A path must be a whole model's folder. A hub's name (org/model) is fetched by vLLM, and only where a folder for it is named.
check_model() {
  [[ -n $MODEL ]] || die "${PREFIX}_MODEL_PATH is not set: the folder of the model to serve"
  if [[ -e $MODEL || $MODEL == [/.~]* || -z $DOWNLOAD_DIR ]]; then
    local told
    told="$("$PYTHON" "$PROBE" model "$MODEL" 2>&1)" || obstacle "$LATER" "${PREFIX}_MODEL_PATH: $told"
    export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
  elif [[ -d $DOWNLOAD_DIR && -w $DOWNLOAD_DIR ]]; then
    say "$MODEL is not a folder here: vLLM fetches it into $DOWNLOAD_DIR"
  else
    obstacle "$LATER" "${PREFIX}_DOWNLOAD_DIR: $DOWNLOAD_DIR is not a folder to write to"
  fi
}

# Every card this start will use must be there and have the memory free that it will ask for.
check_cards() {
  local listed
  if ! command -v nvidia-smi >/dev/null; then
    obstacle 2 "no nvidia-smi on the path: no GPU driver here (${PREFIX}_DEVICE=cpu serves on the CPU)"
  elif ! listed="$(nvidia-smi --query-gpu=index,uuid,memory.total,memory.free,memory.used --format=csv,noheader,nounits)"; then
    obstacle "$LATER" "nvidia-smi does not answer: is the driver loaded?"
  else
    find_cards "$listed"
  fi
  # Only a dry run comes here without a share: by the card it would be computed.
  if [[ -z $UTILISATION ]]; then
    UTILISATION=SHARE
    say "SHARE stands for $MEMORY_MIB MiB as a part of the card's memory, which is not known without the card"
  fi
}

find_cards() { # LISTED
  local -a wanted=()
  local card index uuid total free used found seen=" "
  IFS=', ' read -r -a wanted <<<"$CUDA_VISIBLE_DEVICES"
  # With ray the other hosts bring their own cards; on one host they must all be here.
  if [[ $EXECUTOR != ray && ${#wanted[@]} -lt $PARALLEL ]]; then
    die "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES names ${#wanted[@]} GPUs, ${PREFIX}_TENSOR_PARALLEL=$PARALLEL needs $PARALLEL"
  fi
  for card in "${wanted[@]:0:$PARALLEL}"; do
    [[ $card != MIG-* ]] || die "CUDA_VISIBLE_DEVICES: $card is a part of a card, whose memory nvidia-smi does not tell: name whole cards"
    found=""
    while IFS=', ' read -r index uuid total free used; do
      if [[ $card == "$index" || ($card == GPU-* && $uuid == "$card"*) ]]; then found=1 && break; fi
    done <<<"$1"
    if [[ -z $found ]]; then
      obstacle 2 "CUDA_VISIBLE_DEVICES: there is no GPU $card here; there are: $(cut -d, -f1 <<<"$1" | tr '\n' ' ')"
      continue
    fi
    [[ $seen != *" $index "* ]] || die "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES names GPU $index twice"
    seen+="$index "
    card_fits "$index" "$total" "$free" "$used"
  done
}

card_fits() { # INDEX TOTAL FREE USED
  if ! [[ "$2 $3 $4" =~ ^[0-9]+\ [0-9]+\ [0-9]+$ ]]; then
    obstacle 2 "GPU $1: nvidia-smi does not tell its memory"
    return
  fi
  local needed
  if [[ -n $MEMORY_MIB ]]; then
    watchdog_fits "$1" "$4"
    needed=$MEMORY_MIB
    # Rounded down: a share that is a little too small only costs a few blocks of cache.
    UTILISATION="$(awk -v want="$needed" -v all="$2" 'BEGIN {printf "%.3f", int(want / all * 1000) / 1000}')"
  else
    needed="$(awk -v all="$2" -v share="$UTILISATION" 'BEGIN {printf "%d", all * share}')"
  fi
  # The driver keeps some of a card for itself: that is neither free nor in use.
  if ((needed > $3 + $4)); then
    obstacle 2 "GPU $1 has $2 MiB, $(($3 + $4)) of them for programs; this start asks for more, $needed: ask for less"
  elif ((needed > $3)); then
    obstacle "$LATER" "GPU $1 has $3 of $2 MiB free, this start needs $needed: end what uses it, or ask for less"
  fi
}

# The watchdog reads the whole card: what others hold, what vLLM may fill, and what vLLM does not count.
watchdog_fits() { # INDEX USED
  if ((WATCHDOG_MIB == 0)); then return; fi
  local room=$((WATCHDOG_MIB - OVERHEAD_MIB - $2))
  if ((MEMORY_MIB + OVERHEAD_MIB > WATCHDOG_MIB)); then
    obstacle 2 "${PREFIX}_MEMORY_MIB=$MEMORY_MIB and $OVERHEAD_MIB MiB around it are above the watchdog's limit of $WATCHDOG_MIB MiB"
  elif ((MEMORY_MIB > room)) && [[ -n $MEMORY_GIVEN || $room -lt $((MEMORY_MIB / 2)) ]]; then
    obstacle "$LATER" "GPU $1 has $2 MiB in use; with $MEMORY_MIB more and $OVERHEAD_MIB around them it would stay above the watchdog's limit of $WATCHDOG_MIB MiB"
  elif ((MEMORY_MIB > room)); then
    say "GPU $1 has $2 MiB in use: vLLM gets $room MiB in place of $MEMORY_MIB, to stay below the watchdog's limit"
    MEMORY_MIB=$room
  fi
}
