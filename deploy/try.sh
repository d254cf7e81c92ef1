#!/bin/bash
# Tries the compose mesh for real: builds it, brings it up, asks, kills a worker in the middle of twenty answers, brings
# it back, stops the router for a while, takes all of it down. After `make wheels`, with Docker running:
#
#   deploy/try.sh | tee deploy/try.log
#   BASE_IMAGE=tiermesh-python REDIS_IMAGE=tiermesh-redis deploy/try.sh      with images of make_base.sh
set -euo pipefail

cd "$(dirname "$0")"
exec 2>&1
scratch=$(mktemp -d)

if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
# A mesh of its own: other keys and another name than a mesh that someone runs here.
KEYS_FILE=$scratch/keys ./secrets.sh >/dev/null
set -a; . "$scratch/keys"; set +a
export COMPOSE_PROJECT_NAME=tiermesh-try COMPOSE_ANSI=never
began=$SECONDS

mesh() { "${compose[@]}" -f compose.yaml "$@"; }
say() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - began)); }
container() { mesh ps -a -q "$1"; }
health() { docker inspect --format '{{.State.Health.Status}}' "$(container "$1")"; }
ask() { mesh exec -T -e API_KEY edge python -P - "$@" <try_ask.py; }

take_down() {
    status=$?
    if [ $status -ne 0 ]; then mesh logs --no-color --tail 20 || true; fi
    say "down"
    mesh down --volumes --timeout 15 >/dev/null 2>&1 || true
    rm -rf "$scratch"
    echo "left running: $(docker ps -q --filter label=com.docker.compose.project=tiermesh-try | wc -l) containers"
    if [ $status -eq 0 ]; then echo "OK"; else echo "FAILED ($status)"; fi
}
trap take_down EXIT
trap 'exit 130' INT TERM

until_healthy() {
    local deadline=$((SECONDS + 180)) service
    for service; do
        until [ "$(health "$service")" = healthy ]; do
            [ $SECONDS -lt $deadline ] || { echo "$service is not healthy: $(health "$service")"; return 1; }
            sleep 1
        done
        echo "$service healthy, $(docker exec "$(container "$service")" id -un 2>/dev/null || echo uid 65534)"
    done
}

say "build"
mesh build --quiet >"$scratch/build" 2>&1 || { cat "$scratch/build"; exit 1; }

say "up"
mesh up -d >/dev/null 2>&1
until_healthy redis worker-1 worker-2 router edge
for service in redis worker-1 router edge; do
    docker image inspect --format "$service: {{.Size}}" "$(docker inspect --format '{{.Image}}' "$(container $service)")"
done | awk '{ printf "image of %s %.0f MB\n", $1, $2 / 1e6 }'

say "prompts through the edge node"
ask prompts edge:7070

say "twenty answers from the router; worker-1 is killed in the middle"
touch "$scratch/streams"
victim=$(container worker-1)  # asked before: by the time compose has told, short answers are over
ask streams router:7080 >"$scratch/streams" &
asking=$!
until grep -q 'UNDER WAY' "$scratch/streams"; do
    kill -0 $asking 2>/dev/null || { cat "$scratch/streams"; exit 1; }
    sleep 0.05
done
docker kill -s KILL "$victim" >/dev/null
echo "worker-1: $(docker inspect --format '{{.State.Status}}, exit code {{.State.ExitCode}}' "$victim")"
wait $asking
cat "$scratch/streams"
resumed=$(mesh logs --no-color router 2>/dev/null | grep -c '"event": "resumed"') || true
echo "continued on worker-2: $resumed answers"
[ "$resumed" -gt 0 ] || { echo "worker-1 had no answer when it was killed: nothing was shown"; exit 1; }

say "worker-1 comes back"
mesh start worker-1 >/dev/null 2>&1
until_healthy worker-1

say "the router stops: the edge node answers what it may, and says so"
mesh stop router >/dev/null 2>&1
ask alone edge:7070

say "the router comes back: the edge node is with it again, without a restart"
mesh start router >/dev/null 2>&1
until_healthy router
ask healed edge:7070

say "stop: each service ends by itself"
mesh stop >/dev/null 2>&1
for service in worker-1 worker-2 router edge; do
    code=$(docker inspect --format '{{.State.ExitCode}}' "$(container $service)")
    echo "$service: exit code $code"
    [ "$code" = 0 ]
done
