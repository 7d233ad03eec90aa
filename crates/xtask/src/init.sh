#!/bin/sh
# The guest's first process: makes the usual mounts, loads what nothing asks for by itself, runs /run-in-guest and says its exit code.
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/busybox HOME=/root TERM=linux LC_ALL=C RUST_BACKTRACE=1
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
# Bridged traffic goes through the packet filter only with br_netfilter, as on a Kubernetes node; the kernel never loads it on demand. The other
# modules it would load, at the first use: the slowest moment for tests with deadlines.
for module in br_netfilter ip_vs ip_vs_rr nf_conntrack_netlink xt_set sctp veth 'dummy numdummies=0'; do
  modprobe -q $module || echo "guest: no module $module"
done
cd /root
if [ -e /interactive ]; then
  stty sane
  setsid cttyhack bash /run-in-guest
else
  sh /run-in-guest </dev/null
fi
echo "@@guest-exit $?"
reboot -f
