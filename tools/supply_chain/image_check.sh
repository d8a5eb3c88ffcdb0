#!/usr/bin/env bash
# Runs the paper broker from the image `full`, confined as Compose confines it, and sees its health check pass; then one
# whose check asks a port that nobody listens on, and sees Docker call it unhealthy while it runs. Exit 1 where either
# does otherwise.
set -euo pipefail

image=${LEXI_FULL_IMAGE:-lexi-full:local}
prefix=lexi-image-check-$$
trap 'docker rm -f "$prefix-good" "$prefix-bad" >/dev/null 2>&1 || true' EXIT

start() { # NAME PORT-THAT-IS-ASKED OPTION…
  docker run -d --name "$prefix-$1" --read-only --cap-drop ALL --security-opt no-new-privileges --user 10001:10001 \
    --tmpfs /tmp --tmpfs /state:uid=10001,gid=10001 --network none -e API_HOST=127.0.0.1 \
    --health-cmd "python -S tools/compose/healthy.py $2" --health-interval 1s --health-retries 3 "${@:3}" \
    "$image" python -m services.paper >/dev/null
}

becomes() { # NAME STATE SECONDS: the health check says that, and nothing else before, of a container that runs
  for _ in $(seq "$3"); do
    case $(docker inspect --format '{{.State.Status}} {{.State.Health.Status}}' "$prefix-$1") in
      "running $2") return 0 ;;
      "running starting") sleep 1 ;;
      *) return 1 ;;
    esac
  done
  return 1
}

fail() { # NAME WORDS
  echo "$2" >&2
  docker inspect --format '{{.State.Status}} {{.State.Health.Status}}' "$prefix-$1" >&2
  docker logs "$prefix-$1" >&2
  exit 1
}

start good 8010 --health-start-period 60s --health-start-interval 1s
becomes good healthy 90 || fail good "$image did not become healthy:"
echo "ok: $image is healthy"

start bad 1 # without a start period, in which failures do not count
becomes bad unhealthy 90 || fail bad "the health check did not fail though nobody answers:"
echo "ok: the health check fails where nobody answers"
