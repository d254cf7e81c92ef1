#!/bin/sh
# Makes an image of Debian bookworm from its packages, for machines that can't pull one from a registry.
#
#   sudo deploy/make_base.sh tiermesh-python python3 python3-venv     a BASE_IMAGE for the services
#   sudo deploy/make_base.sh tiermesh-redis redis-server              a REDIS_IMAGE
#
# Needs root, debootstrap and a running Docker daemon. DEBIAN_MIRROR defaults to the mirror that apt uses here.
set -eu

suite=bookworm
[ $# -ge 2 ] || { echo "usage: $0 IMAGE PACKAGE..." >&2; exit 2; }
image=$1
shift

# A debootstrap takes one mirror, so the one that has the suite itself, not its updates.
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' "Codename: $suite" "Identifier: Packages" | head -n 1)}
[ -n "$mirror" ] || { echo "apt knows no mirror of $suite: set DEBIAN_MIRROR" >&2; exit 1; }

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
trap 'exit 130' INT TERM

packages=$(echo "ca-certificates $*" | tr ' ' ',')
debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$mirror" >"$root.log" 2>&1 || {
    tail -n 20 "$root.log" >&2
    exit 1
}
rm -f "$root.log"

# The official Python images say `python`; Debian says `python3`.
if [ -x "$root/usr/bin/python3" ]; then ln -s /usr/bin/python3 "$root/usr/local/bin/python"; fi
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/* \
    "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/var/log/*.log

tar --numeric-owner -C "$root" -c . | docker import --change 'CMD ["/bin/sh"]' - "$image"
