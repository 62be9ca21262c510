#!/bin/sh
# The view of a pool's machine: a root with HTCondor over the lab's worker, in mounts of its own.
# Run by `unshare --mount --propagation private` as root in the lab; says `ready` and waits, so that
# others can enter its mounts by its pid. Gone with its last process.
#
# usage: enter.sh ROOT PLACE; ROOT is only read, PLACE is an empty directory for what changes.
#
# /machine in it is the lab as the agent sees it: its programs (another Debian's) run from there.
set -eu
ROOT=$1 PLACE=$2
mount -t tmpfs -o mode=755 tmpfs "$PLACE"
mkdir "$PLACE/upper" "$PLACE/work" "$PLACE/root"
mount -t overlay -o "lowerdir=$ROOT,upperdir=$PLACE/upper,workdir=$PLACE/work" overlay "$PLACE/root"
cd "$PLACE/root"
mkdir -p machine usr/libexec/lark
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs run
mkdir -p -m 755 /run/lark run/lark run/lock run/sshd
chmod 1777 run/lock
mount --bind /run/lark run/lark
mount --bind /run/lark-bin usr/libexec/lark
cp /etc/resolv.conf etc/resolv.conf
pivot_root . machine
cd /
echo ready
exec sleep infinity
