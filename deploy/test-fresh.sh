#!/usr/bin/env bash
# The README's commands on the last commit, as a new user runs them: on a minimal Debian with ca-certificates, make and git
# only, in an empty environment. Needs root and debootstrap; where they are not, it says SKIPPED and is content.
#   deploy/test-fresh.sh [SUITE...]    bookworm and trixie by default
# Kept between runs, in MLOPS_CACHE: the bare systems, and what uv and pip downloaded. Every run installs anew.
# All happens in a mount and a process namespace of its own: the kernel ends and unmounts everything with it.
set -euo pipefail
cd "$(dirname "$0")/.."
kept=${MLOPS_CACHE:-$HOME/.cache/mlops-assets}/fresh
commands=("make demo" "make test")
skipped() { echo "SKIPPED: $*; the README's commands are not tried on a fresh Debian"; }
skip() { skipped "$@"; exit 0; }

# The settings by which this machine's package clients reach their registries: a new user's machine has its own.
client_settings() { # client_settings SYSTEM
  apt-config dump | grep '^Acquire::' >"$1/etc/apt/apt.conf.d/99host" || true
  for path in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/uv /root/.config/pip /root/.config/uv; do
    [ ! -e "$path" ] || cp -aL --parents "$path" "$1"
  done
  cp -a /usr/local/share/ca-certificates/. "$1/usr/local/share/ca-certificates/" 2>/dev/null || true
  chroot "$1" update-ca-certificates >/dev/null 2>&1
  environment=(HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    UV_LINK_MODE=copy) # its cache is on another mount
  for name in {HTTP,HTTPS,NO,ALL}_PROXY {http,https,no,all}_proxy JAVA_TOOL_OPTIONS SSL_CERT_{FILE,DIR} PIP_CERT \
    PIP_{,EXTRA_}INDEX_URL PIP_DEFAULT_TIMEOUT UV_{,DEFAULT_,EXTRA_}INDEX UV_INDEX_URL UV_HTTP_TIMEOUT; do
    [ -z "${!name:-}" ] || environment+=("$name=${!name}")
  done
}

bare_system() { # bare_system SUITE: made once
  [ ! -d "$kept/$1" ] || return 0
  # shellcheck disable=SC2086 # no mirror is no argument
  debootstrap --variant=minbase --include=ca-certificates,make,git "$1" "$kept/new" ${DEBIAN_MIRROR:-} >"$kept/$1.log" 2>&1 ||
    { tail -n 5 "$kept/$1.log"; exit 75; }
  mv -T "$kept/new" "$kept/$1"
}

inside() { # inside SUITE: in the first process of the namespaces
  local system=$kept/system
  bare_system "$1"
  cp -a "$kept/$1" "$system"
  client_settings "$system"
  mount -t proc proc "$system/proc" && mount --rbind /sys "$system/sys" && mount --rbind /dev "$system/dev"
  for cache in uv pip; do
    mkdir -p "$kept/$cache" "$system/root/.cache/$cache" && mount --bind "$kept/$cache" "$system/root/.cache/$cache"
  done
  git clone --quiet . "$system/root/mlops-assets"
  mount -t proc proc /proc # that of the namespace, to see what is left in it
  for command in "${commands[@]}"; do
    SECONDS=0
    env -i "${environment[@]}" chroot "$system" sh -c "cd ~/mlops-assets && exec $command" </dev/null ||
      { echo "fresh $1: $command FAILED ($?) after $SECONDS s"; return 1; }
    local seconds=$SECONDS left
    for _ in {1..20}; do left=(/proc/[0-9]*); [ ${#left[@]} -gt 1 ] || break; sleep 0.5; done
    for process in "${left[@]:1}"; do echo "left running: $(tr '\0' ' ' <"$process/cmdline")"; done
    [ ${#left[@]} = 1 ] || { echo "fresh $1: $command left $((${#left[@]} - 1)) processes"; return 1; }
    echo "fresh $1: $command ok, $seconds s; $(du -smx --exclude='*/.cache/[up]*' "$system" | cut -f 1) MiB with the system"
  done
}

if [ "${1:-}" = --inside ]; then inside "$2"; exit; fi
[ $# -gt 0 ] || set -- bookworm trixie
[ "$(id -u)" = 0 ] || skip "not root"
command -v debootstrap >/dev/null || skip "no debootstrap"
unshare --mount --pid --fork true 2>/dev/null || skip "no namespaces can be made here"
mkdir -p "$kept"
exec 9>"$kept/lock" && flock 9 # also held by what runs inside
clean() { rm -rf --one-file-system "$kept/system" "$kept/new"; }
end() { # the kernel ends all of the namespace with its first process, and that with unshare
  [ -z "${namespace:-}" ] || { kill -KILL "$namespace" 2>/dev/null; wait "$namespace" 2>/dev/null; } || true
  clean
}
trap end EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
for suite; do
  clean
  unshare --mount --pid --fork --kill-child "$0" --inside "$suite" &
  namespace=$!
  wait "$namespace" || { [ $? = 75 ] || exit 1; skipped "debootstrap could not make $suite"; }
  namespace=
done
