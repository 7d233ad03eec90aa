#!/bin/sh
# The guest's first process: makes the usual mounts, loads what nothing asks for by itself, runs /run-in-guest and says its exit code.
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/busybox HOME=/root TERM=linux LC_ALL=C RUST_BACKTRACE=1 RUST_LIB_BACKTRACE=0
export KUBE_IPVS=/usr/local/bin/kube-ipvs
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /run/netns /run/lock
ln -s /proc/self/fd /dev/fd
ip link set lo up
# The kernel would load most modules at their first use, but two tests that use one for the first time at once make it fail for the second (busybox'
# modprobe does not wait for a module that another one is loading). br_netfilter it never loads by itself; nodes of Kubernetes have it.
netfilter=$(sed -n 's|^kernel/.*netfilter/\(.*/\)\{0,1\}\([^/]*\)\.ko:.*|\2|p' /lib/modules/*/modules.dep)
modprobe -aq $netfilter br_netfilter sctp veth || echo "guest: some modules were not loaded"
modprobe -q dummy numdummies=0 || echo "guest: no module dummy"
# All hosts of all tests share one queue of packets on each processor: where it is as long as usual, a burst of one costs packets of the others.
echo 100000 >/proc/sys/net/core/netdev_max_backlog
cd /root
if [ -e /interactive ]; then
  stty sane
  setsid cttyhack bash /run-in-guest
else
  sh /run-in-guest </dev/null
fi
echo "@@guest-exit $?"
reboot -f
