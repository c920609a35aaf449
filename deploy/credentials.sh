#!/bin/sh
# Below deploy/secrets: cloud/ (certificates, public keys), nodes/ (a private key each), token.env, and ca.key, which
# no machine needs: keep it away, or remove it.
#   sh deploy/credentials.sh [HOST] [NODE ...]      default: cloud edge-0 edge-1 user-0 user-1 user-2 user-3
set -eu
cd "$(dirname "$0")"
host=${1:-cloud}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- edge-0 edge-1 user-0 user-1 user-2 user-3
if [ -e secrets ]; then
    echo "error: $(pwd)/secrets exists already; remove it first to make everything anew" >&2
    exit 2
fi
umask 077
mkdir -p secrets/cloud secrets/nodes
cd secrets
openssl ecparam -name secp384r1 -genkey -noout -out ca.key
openssl req -x509 -new -key ca.key -sha384 -days 365 -subj "/CN=fedkd deployment" \
    -addext "keyUsage=critical,keyCertSign,cRLSign" -out cloud/ca.crt
openssl ecparam -name secp384r1 -genkey -noout -out cloud/superlink.key
openssl req -new -key cloud/superlink.key -subj "/CN=$host" -out superlink.csr
case $host in
    *[!0-9.]*) name="DNS:$host" ;;
    *) name="IP:$host" ;;
esac
# The SuperLink's own processes call it at 127.0.0.1.
printf 'subjectAltName=%s,IP:127.0.0.1,DNS:localhost\nbasicConstraints=critical,CA:FALSE
subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n' "$name" >extensions
openssl x509 -req -in superlink.csr -CA cloud/ca.crt -CAkey ca.key -sha384 -days 365 -extfile extensions \
    -out cloud/superlink.crt
rm superlink.csr extensions
printf 'FEDKD_TOKEN=%s\n' "$(openssl rand -hex 32)" >token.env
cat >cloud/register.sh <<EOF
# In the cloud: make the SuperLink know the nodes' keys.
set -eu
mkdir -p "\$HOME/.flwr"
printf '[superlink]\ndefault = "fedkd"\n\n[superlink.fedkd]\naddress = "$host:8000"\nroot-certificates = "/secrets/ca.crt"\n' >"\$HOME/.flwr/config.toml"
EOF
for node in "$@"; do
    ssh-keygen -q -t ecdsa -b 384 -N "" -C "$node" -f "nodes/$node"
    echo "flwr supernode register /secrets/$node.pub fedkd --name $node" >>cloud/register.sh
    mv "nodes/$node.pub" cloud/
done
# The containers' user has number 1000; nobody else reads the keys.
[ "$(id -u)" -ne 0 ] || chown -R 1000:1000 .
echo "made $(pwd): certificates, token, and keys of $*"
