#!/bin/sh
# Installs the system parts that some tests use, where root and apt are there; elsewhere says what is missing and goes
# on: those tests are then skipped with the same reason. Quick when all is there.
set -u
PATH=$PATH:/usr/sbin:/sbin
missing=
need() { # need PROGRAM PACKAGE: the package that brings a program, unless it is there
    command -v "$1" >/dev/null || missing="$missing $2"
}
need slurmctld slurm-wlm
need munged munge
command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || need chromium chromium
[ -z "$missing" ] && exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing$missing" >&2
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # one word a package
    if apt-get update -qq >&2 && apt-get install -y -qq --no-install-recommends $missing >/dev/null; then
        exit 0
    fi
fi
echo "tests that need$missing are skipped; with root: apt-get install$missing" >&2
