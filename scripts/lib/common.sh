# shellcheck shell=bash
# shellcheck disable=SC2034 # as_root is for those who source this
# Sourced by the shell scripts: messages, and how to become root.

say() { printf '\n== %s\n' "$*"; }

# die MESSAGE [HINT]
die() {
    printf 'error: %s\n' "$1" >&2
    if [ $# -gt 1 ]; then printf 'hint: %s\n' "$2" >&2; fi
    exit 1
}

# "${as_root[@]}" COMMAND runs it as root
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "this needs root" "run it as root, or install sudo"
    as_root=(sudo "--preserve-env=CI,HOME,PEEL,XDG_CACHE_HOME")
fi
