#!/bin/bash
# eval.sh FLAKE.nix|DIR old|new [INPUT[=DIR]...]  -> JSON; nothing but nix (>= 2.8) is needed, no network, no daemon, no /nix
set -euo pipefail
M=$(cd "$(dirname "$0")" && pwd); F=$1; DRV=$2; shift 2
T=$(mktemp -d); trap 'chmod -R u+w "$T"; rm -rf "$T"' EXIT
export NIX_REMOTE=local NIX_STORE_DIR=$T/store NIX_STATE_DIR=$T/var NIX_LOG_DIR=$T/log NIX_CONF_DIR=$T/etc NIX_USER_CONF_FILES=/dev/null
export HOME=$T/home XDG_CACHE_HOME=$T/cache XDG_CONFIG_HOME=$T/config XDG_DATA_HOME=$T/data XDG_STATE_HOME=$T/state
mkdir -p "$T/etc" "$T/home" "$T/store" "$T/flake"
printf '%s\n' 'experimental-features = nix-command flakes' 'substituters =' 'flake-registry =' 'build-users-group =' 'sandbox = false' > "$T/etc/nix.conf"
if [ -d "$F" ]; then cp "$F"/* "$T/flake/"; else cp "$F" "$T/flake/flake.nix"; fi
o=(--override-input codchi_driver "path:$M/driver-$DRV" --override-input codchi_driver/nixpkgs "path:$M/nixpkgs")
for i; do n=${i%%=*}; p=$M/module; [ "$n" = "$i" ] || p=${i#*=}; o+=(--override-input "$n" "path:$p" --override-input "$n/nixpkgs" "path:$M/nixpkgs"); done
${NIX:-nix} eval --offline --no-write-lock-file --json "${o[@]}" "path:$T/flake#nixosConfigurations.nixos.config" \
  --apply 'c: { marks = c.marks or [ ]; secrets = c.secretsModule or false; driver = c.nix.driver; isNixpkgs = c.nix.registry ? lib; system = c.system; host = c.networking.hostName or null; }'
