#!/usr/bin/env bash
# Brings a fresh Debian/Ubuntu or macOS to where the project runs: uv, a Python, the locked packages and a Java 17+.
# Safe to run again: it does only what is missing. It says what it installs, and a reason only where it can't go on.
set -euo pipefail
cd "$(dirname "$0")/.."
uv_version=0.9.13 # the oldest that was tried; an uv that is already on PATH is used as it is
said=$(mktemp)
trap 'rm -f "$said"' EXIT
say() { printf 'setup: %s\n' "$*" >&2; }
fail() { tail -n 5 "$said" >&2; say "$*"; exit 1; }

apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >"$said" 2>&1; }
as_root() { # runs a command as root where that needs no question, else fails
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo -n "$@"
  else echo "this takes root's rights"; return 1; fi
}
first_of() { # first_of APT_NAME...: installs the first that there is
  for name; do apt install -y --no-install-recommends "$name" && return 0; done
  return 1
}
system_package() { # system_package WHAT BREW_NAME APT_NAME...
  say "installing $1 with the system's package manager"
  if command -v apt-get >/dev/null; then
    # A list of packages that is already fresh need not be fetched again; an old one is the usual cause of a failure.
    first_of "${@:3}" || { apt update && first_of "${@:3}"; }
  elif command -v brew >/dev/null; then brew install --quiet "$2" >"$said" 2>&1
  else return 1; fi
}

if ! command -v uv >/dev/null && [ ! -x .tools/bin/uv ]; then
  python3 -c 'import ensurepip, venv' 2>/dev/null || system_package Python python3 python3-venv ||
    fail "no python3 with venv: install it (python3-venv), or uv (https://docs.astral.sh/uv/), then run this again"
  python3 -m venv --clear .tools
  .tools/bin/pip install --quiet --disable-pip-version-check "uv>=$uv_version"
fi
PATH=$PATH:$PWD/.tools/bin
[ -d .venv ] || say "installing the locked packages"
uv sync --quiet --locked --all-extras

# Spark and the local Kafka take the Java of JAVA_HOME, else that on PATH.
java_is_new() {
  local major
  major=$("${JAVA_HOME:+$JAVA_HOME/bin/}java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1) || true
  [ "${major:-0}" -ge 17 ]
}
if ! java_is_new; then
  [ -z "${JAVA_HOME:-}" ] || fail "Spark and Kafka need Java 17 or newer, which JAVA_HOME ($JAVA_HOME) is not: change or unset it"
  system_package Java openjdk@21 openjdk-21-jre-headless openjdk-17-jre-headless default-jre-headless ||
    fail "Spark and Kafka need Java 17 or newer: install a JRE (default-jre-headless) and put java on PATH, then run this again"
  if ! java_is_new && command -v brew >/dev/null; then # Homebrew keeps its Java aside; here macOS' own java looks for one
    mkdir -p ~/Library/Java/JavaVirtualMachines
    ln -sfn "$(brew --prefix openjdk@21)/libexec/openjdk.jdk" ~/Library/Java/JavaVirtualMachines/openjdk-21.jdk
  fi
  java_is_new || fail "Java was installed, but 'java' on PATH is older than 17 or does not run: put the new one first on PATH"
fi
