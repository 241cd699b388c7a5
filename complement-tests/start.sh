#!/bin/sh
# Starts Trellis for one container of upstream Complement: configuration from the environment, everything that must
# outlive a restart in DATA_DIR, no rate limits, cheap password hashes. See README.md beside it.
set -eu

root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
: "${SERVER_NAME:?}" "${DATA_DIR:?}" "${TLS_CERT:?}" "${TLS_KEY:?}" "${CA_CERT:?}"

# A container has processes of its own: whatever wrote this file into a copied or restarted DATA_DIR has ended, and its
# number may belong to somebody else by now.
rm -f "$DATA_DIR"/postgres/postmaster.pid

registrations=""
for file in "${APPSERVICE_DIR:-/nonexistent}"/*.yaml; do
  [ -e "$file" ] && registrations="$registrations${registrations:+, }\"$file\""
done

# Written at every start, so that a copied DATA_DIR holds no path of the original.
cat >"$DATA_DIR/config.yaml" <<YAML
server_name: "$SERVER_NAME"
data_dir: "$DATA_DIR"
http: { host: "${BIND_ADDRESS:-0.0.0.0}", port: ${CLIENT_PORT:-8008} }
tls: { host: "${BIND_ADDRESS:-0.0.0.0}", port: ${FEDERATION_PORT:-8448}, certificate: "$TLS_CERT", key: "$TLS_KEY" }
registration: { open: true, shared_secret: "${REGISTRATION_SECRET:-complement}" }
passwords: { memory_kib: 64, passes: 1, min_length: 1 }
rooms: { default_version: "11" }
rate_limits: { enabled: false }
federation: { ca_file: "$CA_CERT", deny_addresses: [] }
media: { freeze_unauthenticated: false }
workers: ${TRELLIS_WORKERS:-1}
# So that each of several has something to do.
cluster: { fill: 0 }
application_services: [$registrations]
YAML

exec "${TRELLIS_NODE:-node}" "$root/homeserver/main.ts" --config "$DATA_DIR/config.yaml"
