#!/bin/sh
# Waits for the token that another container or an orchestrator puts in place, then becomes the command.
set -eu
if [ "${RAY_AUTH_MODE:-}" = token ] && [ -n "${RAY_AUTH_TOKEN_PATH:-}" ]; then
  waited=0
  until [ -s "$RAY_AUTH_TOKEN_PATH" ]; do
    if [ "$waited" -ge 60 ]; then
      echo "error: no token in $RAY_AUTH_TOKEN_PATH after 60 s; put a secret of 32 characters or more there" >&2
      exit 2
    fi
    sleep 1
    waited=$((waited + 1))
  done
fi
exec "$@"
