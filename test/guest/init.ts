// The first program of a guest, a script of busybox. It mounts what the guest shares with the host,
// makes the host's root a place to run programs in, and runs what the test asked for.
//
// The host's root is there read-only, by 9p; what programs write to lies on tmpfs, and /dev, /proc
// and /sys are the guest's. The folder of this guest (its kernel parameter penstock_folder) is
// there writable, under the path it has on the host. In it the host left `config.sh` and `run.sh`;
// output and kernel log are written to files in it, which no crash of the guest takes back.
//
// Invariant: the last thing on the control port is `exit N`, whatever happened before.

/** Commands of busybox that the script uses. */
export const INIT_APPLETS = [
  'sh',
  'cat',
  'chmod',
  'chroot',
  'echo',
  'grep',
  'hostname',
  'insmod',
  'ip',
  'mkdir',
  'mkfifo',
  'mount',
  'mv',
  'poweroff',
  'sleep',
  'sync',
  'umount',
];

/** Modules that the guest needs before it sees the host's files, in the order of loading. */
export const INIT_MODULES = ['virtio_pci', '9pnet_virtio', '9p', 'virtio_console'];

/** Folders of the host's root that programs write to; what must show through is bound into them. */
export const WRITABLE_FOLDERS = ['/tmp', '/run', '/mnt', '/var/tmp'];

export const INIT_SCRIPT = `#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
set -- /modules/*
for module; do insmod "$module" || echo "init: $module cannot be loaded"; done

# Ports are found by name: a test may have a virtio-serial device of its own.
port() {
  for name in /sys/class/virtio-ports/*/name; do
    [ "$(cat "$name")" = "penstock.$1" ] || continue
    name=\${name%/name}
    echo "/dev/\${name##*/}"
  done
}
tries=0
until [ -c "$(port control)" ] || [ "$tries" -ge 50 ]; do sleep 0.1; tries=$((tries + 1)); done
control=$(port control)

finish() {
  sync
  echo "exit $1" >"$control"
  poweroff -f
  sleep 60
}
fail() {
  echo "init: $1"
  finish 125
}

mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 host /host ||
  fail 'the root of the host cannot be mounted'
mount -t 9p -o trans=virtio,version=9p2000.L,cache=none,msize=512000 folder /folder ||
  fail 'the folder of the guest cannot be mounted'
(while :; do cat /dev/kmsg; sleep 0.1; done >>/folder/kmsg 2>/dev/null) &
. /folder/config.sh || fail 'no configuration'

# What lies in a folder that tmpfs is about to cover is held elsewhere meanwhile.
count=0
for path in $KEEP; do
  mkdir -p "/keep/$count"
  mount --bind "/host$path" "/keep/$count" || fail "$path is not on the host"
  count=$((count + 1))
done
for path in $WRITABLE; do [ ! -d "/host$path" ] || mount -t tmpfs tmpfs "/host$path"; done
count=0
for path in $KEEP; do
  mkdir -p "/host$path"
  mount --move "/keep/$count" "/host$path" || fail "$path cannot be bound"
  count=$((count + 1))
done
mkdir -p "/host$penstock_folder"
mount --move /folder "/host$penstock_folder" || fail 'the folder of the guest cannot be bound'
mount -t proc proc /host/proc
mount -t sysfs sysfs /host/sys
mount -t devtmpfs devtmpfs /host/dev
mkdir -p /host/dev/pts /host/dev/shm /host/dev/hugepages
mount -t devpts devpts /host/dev/pts
mount -t tmpfs tmpfs /host/dev/shm
ip link set lo up
hostname guest

# The kernel asks this root's /sbin/modprobe for modules; they lie on the host, with kmod's. It is
# renamed when complete: the kernel would ask an empty one for the format of an empty program.
echo "#!/bin/sh
exec /bin/chroot /host /sbin/modprobe -d '$MODULES' \\"\\$@\\"" >/sbin/modprobe.new
chmod 755 /sbin/modprobe.new
mv /sbin/modprobe.new /sbin/modprobe
for module in $LOAD; do
  chroot /host /sbin/modprobe -d "$MODULES" "$module" || fail "no module $module"
done
if [ "$HUGEPAGES" -gt 0 ]; then
  mount -t hugetlbfs hugetlbfs /host/dev/hugepages
  echo "$HUGEPAGES" >/proc/sys/vm/nr_hugepages
  grep -q "HugePages_Total: *$HUGEPAGES\\$" /proc/meminfo || fail 'too little memory for hugepages'
fi

# A pipe in between: reading the port itself would hold a thread of Node that cannot be ended.
mkfifo /input
exec 3<>"$(port channel)"
cat <&3 >/input &
echo ready >"$control"
chroot /host /bin/sh "$penstock_folder/run.sh" \\
  </input >>"/host$penstock_folder/stdout" 2>>"/host$penstock_folder/stderr"
finish $?
`;
