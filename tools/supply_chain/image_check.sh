#!/usr/bin/env bash
# Runs the paper broker from the image `full`, confined as Compose confines it, and sees its health check pass; then one
# whose check asks a port that nobody listens on, and sees it fail. Exit 1 where either does otherwise.
set -euo pipefail

image=${LEXI_FULL_IMAGE:-lexi-full:local}
prefix=lexi-image-check-$$
trap 'docker rm -f "$prefix-good" "$prefix-bad" >/dev/null 2>&1 || true' EXIT

start() { # NAME PORT-THAT-IS-ASKED
  docker run -d --name "$prefix-$1" --read-only --cap-drop ALL --security-opt no-new-privileges --user 10001:10001 \
    --tmpfs /tmp --tmpfs /state:uid=10001,gid=10001 --network none -e API_HOST=127.0.0.1 \
    --health-cmd "python -S tools/compose/healthy.py $2" --health-interval 1s --health-retries 3 \
    --health-start-period 60s --health-start-interval 1s \
    "$image" python -m services.paper >/dev/null
}

healthy() { # NAME SECONDS
  for _ in $(seq "$2"); do
    case $(docker inspect --format '{{.State.Status}} {{.State.Health.Status}}' "$prefix-$1") in
      "running healthy") return 0 ;;
      "running starting") sleep 1 ;;
      *) return 1 ;;
    esac
  done
  return 1
}

start good 8010
if ! healthy good 90; then
  echo "$image did not become healthy:" >&2
  docker logs "$prefix-good" >&2
  exit 1
fi
echo "ok: $image is healthy"

start bad 1
if healthy bad 20; then
  echo "the health check passes though nobody answers" >&2
  exit 1
fi
echo "ok: the health check fails where nobody answers"
