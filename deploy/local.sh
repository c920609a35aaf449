#!/bin/sh
# One SuperLink (TLS, registered nodes), three edges and six users on this machine, each in a network namespace of its
# own, run the quickstart for two rounds. Needs Linux, root and iproute2. More arguments go to `fedkd federate`:
#   sudo sh deploy/local.sh federation.rounds=1 run.name=mine
set -eu
exec fedkd federate quickstart federation.edges=3 federation.users=6 --local --netns "$@"
