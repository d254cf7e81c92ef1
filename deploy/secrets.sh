#!/bin/sh
# Makes the keys of a compose mesh, once, in deploy/.env, where only its owner and Compose read them. KEYS_FILE names
# another file.
set -eu

file=${KEYS_FILE:-$(dirname "$0")/.env}
[ ! -e "$file" ] || { echo "$file exists: remove it to make new keys" >&2; exit 1; }

key() { echo "tm_$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')"; }
hash() { printf 'sha256:%s' "$(printf %s "$1" | sha256sum | cut -d ' ' -f 1)"; }

api_key=$(key)
node_key=$(key)
umask 077
cat >"$file" <<END
COMPOSE_PROJECT_NAME=tiermesh
# What the application shows (Authorization: Bearer ...), and what the router knows of it.
API_KEY=$api_key
API_KEY_HASH=$(hash "$api_key")
# What the edge node shows to the router, and what the router knows of it.
NODE_KEY=$node_key
NODE_KEY_HASH=$(hash "$node_key")
# What the router shows to the workers.
WORKER_TOKEN=$(key)
END
echo "$file: API_KEY is the key of tenant demo"
