// Doctor's checks of what devices need: hugepages, locked memory, IOMMU, VFIO.

import type { Root } from '../pci/index.js';
import { formatSize } from '../units.js';
import { type Check, ok, warn } from './check.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;
/** Bit of CAP_IPC_LOCK in /proc/self/status. */
const CAP_IPC_LOCK = 14;

export function checkHugepages2M(root: Root): Check {
  const folder = '/sys/kernel/mm/hugepages/hugepages-2048kB';
  if (!root.exists(folder)) {
    return warn(
      'hugepages 2M',
      'the kernel has none',
      'Ordinary pages are used; a kernel with CONFIG_HUGETLBFS has them.',
    );
  }
  const total = Number(root.read(`${folder}/nr_hugepages`));
  const free = Number(root.read(`${folder}/free_hugepages`));
  const reserve = `echo 512 > ${folder}/nr_hugepages`;
  const detail = `${total} reserved, ${free} free`;
  if (total === 0) {
    return warn('hugepages 2M', 'none reserved: ordinary pages are used', `As root: ${reserve}`);
  }
  if (free === 0) return warn('hugepages 2M', detail, `Reserve more; as root: ${reserve}`);
  return ok('hugepages 2M', `${detail} (${formatSize(free * 2 * MIB)})`);
}

export function checkHugepages1G(root: Root): Check {
  const folder = '/sys/kernel/mm/hugepages/hugepages-1048576kB';
  if (!root.exists(folder)) return ok('hugepages 1G', 'not supported here; not needed');
  const total = Number(root.read(`${folder}/nr_hugepages`));
  const free = Number(root.read(`${folder}/free_hugepages`));
  if (total === 0) {
    return ok('hugepages 1G', `none reserved; not needed (echo 1 > ${folder}/nr_hugepages)`);
  }
  return ok('hugepages 1G', `${total} reserved, ${free} free`);
}

export function checkMemlock(root: Root): Check {
  const limit = /^Max locked memory\s+(\S+)/m.exec(root.read('/proc/self/limits'))?.[1] ?? '';
  const capabilities = /^CapEff:\s*([0-9a-f]+)/m.exec(root.read('/proc/self/status'))?.[1] ?? '0';
  if (limit === 'unlimited') return ok('memlock', 'unlimited');
  const limitText = limit === '' ? 'unknown limit' : `limit ${formatSize(Number(limit))}`;
  const low = Number.parseInt(capabilities.slice(-8), 16);
  if ((low >>> CAP_IPC_LOCK) & 1) return ok('memlock', `${limitText}, lifted by CAP_IPC_LOCK`);
  if (Number(limit) >= GIB) return ok('memlock', limitText);
  return warn(
    'memlock',
    limitText,
    'VFIO and registered buffers lock memory: ulimit -l unlimited, or "* - memlock unlimited" in ' +
      '/etc/security/limits.conf (LimitMEMLOCK=infinity in a systemd unit).',
  );
}

export function checkIommu(root: Root): Check {
  const groups = root.list('/sys/kernel/iommu_groups').length;
  const units = root.list('/sys/class/iommu');
  const commandLine = root.read('/proc/cmdline').split(/\s+/);
  const said = commandLine.filter((word) => /^(iommu|intel_iommu|amd_iommu)=/.test(word));
  const suffix = said.length === 0 ? '' : ` (${said.join(' ')})`;
  if (groups > 0) {
    return ok(
      'iommu',
      `${groups} groups${units.length > 0 ? `, ${units.join(' ')}` : ''}${suffix}`,
    );
  }
  const cpu = root.read('/proc/cpuinfo');
  const without = 'Files and virtual disks of the kernel work without it; for PCI devices ';
  if (/^flags\s*:.*\bhypervisor\b/m.test(cpu)) {
    return warn(
      'iommu',
      `none seen by this virtual machine${suffix}`,
      `${without}give the machine one (QEMU: -device intel-iommu,intremap=on).`,
    );
  }
  const intel = cpu.includes('GenuineIntel');
  return warn(
    'iommu',
    `none in use${suffix}`,
    intel
      ? `${without}turn on VT-d in the firmware and boot with intel_iommu=on iommu=pt.`
      : `${without}turn on AMD-Vi (IOMMU) in the firmware and boot with iommu=pt.`,
  );
}

export function checkVfio(root: Root): Check {
  const pci = root.exists('/sys/bus/pci/drivers/vfio-pci');
  if (!pci || !root.exists('/dev/vfio/vfio')) {
    return warn(
      'vfio',
      pci ? 'vfio-pci is there, /dev/vfio/vfio is not' : 'the vfio-pci driver is not loaded',
      'Needed for PCI devices only: modprobe vfio-pci.',
    );
  }
  const groups = root.list('/dev/vfio').filter((name) => /^(noiommu-)?\d+$/.test(name));
  const unsafe = root.read('/sys/module/vfio/parameters/enable_unsafe_noiommu_mode') === 'Y';
  const devices = root.list('/sys/bus/pci/drivers/vfio-pci').filter((name) => name.includes(':'));
  return ok(
    'vfio',
    `vfio-pci loaded, ${devices.length} devices bound, ${groups.length} groups` +
      (unsafe ? ', no-IOMMU mode allowed' : ''),
  );
}
