#!/bin/sh
# Makes the keys of a compose mesh, once, in deploy/.env, where only its owner and Compose read them, and the mesh's secret
# beside it, in mesh.secret. KEYS_FILE names another file.
set -eu

file=${KEYS_FILE:-$(dirname "$0")/.env}
secret=$(cd "$(dirname "$file")" && pwd)/mesh.secret
for made in "$file" "$secret"; do
    [ ! -e "$made" ] || { echo "$made exists: remove it to make new keys" >&2; exit 1; }
done

random() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }
key() { echo "tm_$(random)"; }
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
# What the routers share, as "tiermesh keys init" makes it, and the group that may read it: the router's user joins that.
SECRET_FILE=$secret
SECRET_GROUP=$(id -g)
END
(umask 027 && echo "$(random)" >"$secret") # 0640
echo "$file: API_KEY is the key of tenant demo"
