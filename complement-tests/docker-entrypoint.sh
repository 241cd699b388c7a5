#!/bin/sh
# Entry point of the Complement image: makes the certificate that Complement's CA vouches for, then start.sh.
# Complement puts the CA into /complement/ca and application services into /complement/appservice.
set -eu

: "${SERVER_NAME:?SERVER_NAME is not set}"
mkdir -p /complement/tls /complement/appservice /data
cd /complement/tls
openssl req -new -newkey rsa:2048 -nodes -keyout tls.key -out tls.csr -subj "/CN=$SERVER_NAME" 2>/dev/null
printf 'subjectAltName=DNS:%s\n' "$SERVER_NAME" >extensions
openssl x509 -req -in tls.csr -CA /complement/ca/ca.crt -CAkey /complement/ca/ca.key -set_serial "0x$(openssl rand -hex 8)" \
  -days 30 -sha256 -extfile extensions -out tls.crt 2>/dev/null
cat /complement/ca/ca.crt >>tls.crt

export BIND_ADDRESS=0.0.0.0 CLIENT_PORT=8008 FEDERATION_PORT=8448 DATA_DIR=/data
export TLS_CERT=/complement/tls/tls.crt TLS_KEY=/complement/tls/tls.key CA_CERT=/complement/ca/ca.crt
export APPSERVICE_DIR=/complement/appservice REGISTRATION_SECRET=complement
exec /trellis/complement-tests/start.sh
