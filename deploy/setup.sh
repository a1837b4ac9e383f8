#!/usr/bin/env bash
# Brings a fresh Debian/Ubuntu or macOS to where the project runs: uv, a Python, the locked packages and a Java 17+.
# Safe to run again: it does only what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
uv_version=0.9.13 # the oldest that was tried; an uv that is already on PATH is used as it is
say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

as_root() { # runs a command as root where that needs no question, else fails
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo -n "$@"; else return 1; fi
}
system_package() { # system_package APT_NAME BREW_NAME WHAT
  say "installing $3 with the system's package manager"
  if command -v apt-get >/dev/null; then
    # A list of packages that is already fresh need not be fetched again; an old one is the usual cause of a failure.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$1" >/dev/null 2>&1 ||
      { as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$1" >/dev/null; }
  elif command -v brew >/dev/null; then brew install --quiet "$2"
  else return 1; fi
}

if ! command -v uv >/dev/null && [ ! -x .tools/bin/uv ]; then
  command -v python3 >/dev/null || system_package python3 python3 "Python" || fail "no python3: install Python 3.11 or newer, then run this again"
  if ! python3 -m venv .tools 2>/dev/null; then
    rm -rf .tools
    system_package python3-venv python3 "Python's venv" && python3 -m venv .tools || fail "python3 -m venv fails: install uv (https://docs.astral.sh/uv/) or python3-venv, then run this again"
  fi
  .tools/bin/pip install --quiet --disable-pip-version-check "uv>=$uv_version"
fi
PATH=$PATH:$PWD/.tools/bin
uv sync --quiet --locked --all-extras

java_major() { java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1; }
major=$(java_major || true)
if [ "${major:-0}" -lt 17 ]; then
  system_package openjdk-17-jre-headless openjdk@17 "Java 17" || fail "Spark and Kafka need Java 17 or newer (found: ${major:-none}): install a JRE and put java on PATH"
  major=$(java_major || true)
  [ "${major:-0}" -ge 17 ] || fail "Java 17 was installed, but 'java' on PATH is ${major:-none}: put the new one first on PATH"
fi
