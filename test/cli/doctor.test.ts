import { describe, expect, it } from 'vitest';
import type { Facts } from '../../lib/cli/check.js';
import {
  checkHugepages1G,
  checkHugepages2M,
  checkIommu,
  checkMemlock,
  checkVfio,
} from '../../lib/cli/checks-devices.js';
import {
  checkAddon,
  checkCgroup,
  checkCpu,
  checkKernel,
  checkNode,
  checkTmp,
  checkUring,
} from '../../lib/cli/checks-host.js';
import { formatChecks, isReady, runChecks } from '../../lib/cli/doctor.js';
import { fileRoot } from '../../lib/pci/index.js';
import { treeOf } from './tree.js';

const facts: Facts = {
  nodeVersion: 'v20.20.2',
  uring: { available: true, reason: '', hint: '', detail: 'works' },
  addonError: '',
  tmpFolder: '/tmp',
  tmpFreeBytes: 2 ** 40,
};
const forbidden: Facts = {
  ...facts,
  uring: { available: false, reason: 'EPERM', hint: 'allow it in the seccomp filter', detail: '' },
};
const HUGE = '/sys/kernel/mm/hugepages';

describe('the kernel, Node and the addon', () => {
  it.each([
    ['6.18.44-fc', 'ok'],
    ['6.1.0', 'ok'],
    ['5.10.0-8-amd64', 'warn'],
    ['5.9.16', 'fail'],
    ['4.19.0', 'fail'],
  ])('Linux %s: %s', (release, status) => {
    const root = treeOf({ '/proc/sys/kernel/osrelease': release });
    expect(checkKernel(root).status).toBe(status);
  });

  it.each([
    ['v20.17.0', 'ok'],
    ['v22.1.0', 'ok'],
    ['v20.16.0', 'fail'],
    ['v18.20.0', 'fail'],
  ])('Node %s: %s', (nodeVersion, status) => {
    expect(checkNode({ ...facts, nodeVersion }).status).toBe(status);
  });

  it('says why the addon does not load and how to build it', () => {
    expect(checkAddon(facts).status).toBe('ok');
    expect(checkAddon({ ...facts, addonError: 'wrong libc' })).toMatchObject({
      status: 'fail',
      detail: 'wrong libc',
      fix: expect.stringContaining('npm run build') as string,
    });
  });
});

describe('io_uring', () => {
  it('is fine when a ring was set up, whatever the sysctl says', () => {
    const root = treeOf({ '/proc/sys/kernel/io_uring_disabled': '1' });
    expect(checkUring(root, facts)).toMatchObject({ status: 'ok', detail: 'works' });
  });

  it('tells a sysctl from a seccomp filter', () => {
    const off = treeOf({ '/proc/sys/kernel/io_uring_disabled': '2' });
    expect(checkUring(off, forbidden).fix).toBe('sysctl -w kernel.io_uring_disabled=0');
    const group = treeOf({
      '/proc/sys/kernel/io_uring_disabled': '1',
      '/proc/sys/kernel/io_uring_group': '989',
    });
    expect(checkUring(group, forbidden).detail).toContain('group 989');
    const filtered = treeOf({ '/proc/sys/kernel/io_uring_disabled': '0' });
    expect(checkUring(filtered, forbidden)).toMatchObject({ status: 'fail', detail: 'EPERM' });
    expect(checkUring(filtered, forbidden).fix).toContain('seccomp');
  });
});

describe('memory for devices', () => {
  it('says how to reserve hugepages when none are, and that it works without', () => {
    const none = treeOf({
      [`${HUGE}/hugepages-2048kB/nr_hugepages`]: '0',
      [`${HUGE}/hugepages-2048kB/free_hugepages`]: '0',
    });
    const check = checkHugepages2M(none);
    expect(check.status).toBe('warn');
    expect(check.detail).toContain('ordinary pages are used');
    expect(check.fix).toContain(`echo 512 > ${HUGE}/hugepages-2048kB/nr_hugepages`);
    const used = treeOf({
      [`${HUGE}/hugepages-2048kB/nr_hugepages`]: '8',
      [`${HUGE}/hugepages-2048kB/free_hugepages`]: '0',
    });
    expect(checkHugepages2M(used)).toMatchObject({ status: 'warn', detail: '8 reserved, 0 free' });
    const free = treeOf({
      [`${HUGE}/hugepages-2048kB/nr_hugepages`]: '8',
      [`${HUGE}/hugepages-2048kB/free_hugepages`]: '5',
    });
    expect(checkHugepages2M(free)).toMatchObject({
      status: 'ok',
      detail: '8 reserved, 5 free (10 MiB)',
    });
    expect(checkHugepages2M(treeOf({})).status).toBe('warn');
  });

  it('does not ask for 1 GiB pages', () => {
    expect(checkHugepages1G(treeOf({})).status).toBe('ok');
    const some = treeOf({
      [`${HUGE}/hugepages-1048576kB/nr_hugepages`]: '2',
      [`${HUGE}/hugepages-1048576kB/free_hugepages`]: '1',
    });
    expect(checkHugepages1G(some).detail).toBe('2 reserved, 1 free');
  });

  it.each([
    ['8388608', '0000000000000000', 'warn'],
    ['8388608', '0000000000004000', 'ok'],
    ['8388608', '000001ffffffffff', 'ok'],
    ['unlimited', '0000000000000000', 'ok'],
    ['4294967296', '0000000000000000', 'ok'],
  ])('memlock %s with capabilities %s: %s', (limit, capabilities, status) => {
    const root = treeOf({
      '/proc/self/limits': `Max processes 1 1 processes\nMax locked memory     ${limit}   8 bytes`,
      '/proc/self/status': `Name:\tnode\nCapEff:\t${capabilities}`,
    });
    expect(checkMemlock(root).status).toBe(status);
  });
});

describe('IOMMU and VFIO', () => {
  it('counts groups, or says what to turn on for this CPU', () => {
    const on = treeOf({
      '/sys/kernel/iommu_groups/0/type': 'DMA',
      '/sys/kernel/iommu_groups/1/type': 'DMA',
      '/sys/class/iommu/dmar0': '/',
      '/proc/cmdline': 'quiet intel_iommu=on',
    });
    expect(checkIommu(on)).toMatchObject({
      status: 'ok',
      detail: '2 groups, dmar0 (intel_iommu=on)',
    });
    const intel = treeOf({ '/proc/cpuinfo': 'vendor_id\t: GenuineIntel\nflags\t\t: fpu vmx' });
    expect(checkIommu(intel).fix).toContain('intel_iommu=on');
    const amd = treeOf({ '/proc/cpuinfo': 'vendor_id\t: AuthenticAMD\nflags\t\t: fpu svm' });
    expect(checkIommu(amd).fix).toContain('AMD-Vi');
    const guest = treeOf({ '/proc/cpuinfo': 'flags\t\t: fpu hypervisor' });
    expect(checkIommu(guest).fix).toContain('-device intel-iommu');
  });

  it('wants the driver and its device file', () => {
    expect(checkVfio(treeOf({}))).toMatchObject({ status: 'warn' });
    expect(checkVfio(treeOf({})).fix).toContain('modprobe vfio-pci');
    const loaded = treeOf({
      '/sys/bus/pci/drivers/vfio-pci/0000:01:00.0': '->/sys/devices',
      '/dev/vfio/vfio': '',
      '/dev/vfio/14': '',
      '/sys/module/vfio/parameters/enable_unsafe_noiommu_mode': 'Y',
    });
    expect(checkVfio(loaded)).toMatchObject({
      status: 'ok',
      detail: 'vfio-pci loaded, 1 devices bound, 1 groups, no-IOMMU mode allowed',
    });
  });
});

describe('CPU, control groups and space', () => {
  const cpuinfo = (flags: string, count: number): string =>
    Array.from(
      { length: count },
      (_, index) => `processor\t: ${index}\nmodel name\t: Chip 1\nflags\t\t: ${flags}\n`,
    ).join('\n');
  const governor = '/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor';

  it('wants a steady time stamp counter, two CPUs and full speed', () => {
    const good = { '/proc/cpuinfo': cpuinfo('fpu constant_tsc nonstop_tsc', 2) };
    expect(checkCpu(treeOf(good))).toMatchObject({ status: 'ok', detail: '2 × Chip 1' });
    const drifting = treeOf({ '/proc/cpuinfo': cpuinfo('fpu constant_tsc', 2) });
    expect(checkCpu(drifting).detail).toContain('without nonstop_tsc');
    const single = treeOf({ '/proc/cpuinfo': cpuinfo('constant_tsc nonstop_tsc', 1) });
    expect(checkCpu(single).status).toBe('warn');
    const saving = checkCpu(treeOf({ ...good, [governor]: 'powersave' }));
    expect(saving).toMatchObject({ status: 'warn', fix: expect.stringContaining('cpupower') });
    expect(checkCpu(treeOf({ ...good, [governor]: 'performance' })).status).toBe('ok');
  });

  it('finds the lowest limit of version 2 on the way up', () => {
    const root = treeOf({
      '/proc/self/cgroup': '0::/user/me',
      '/sys/fs/cgroup/user/me/memory.max': 'max',
      '/sys/fs/cgroup/user/memory.max': '536870912',
      '/sys/fs/cgroup/user/me/cpu.max': '150000 100000',
      '/sys/fs/cgroup/user/cpu.max': 'max 100000',
    });
    const check = checkCgroup(root);
    expect(check).toMatchObject({ status: 'warn', detail: 'limited to memory 512 MiB, 1.5 CPUs' });
    expect(check.fix).toContain('cpuset');
  });

  it('reads version 1, where no limit is a huge number', () => {
    const limits = { '/proc/self/cgroup': '4:memory:/job\n1:cpu,cpuacct:/\n0::/' };
    const limited = treeOf({
      ...limits,
      '/sys/fs/cgroup/memory/job/memory.limit_in_bytes': '8589934592',
      '/sys/fs/cgroup/memory/memory.limit_in_bytes': '9223372036854771712',
      '/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us': '-1',
      '/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us': '100000',
    });
    expect(checkCgroup(limited)).toEqual({
      name: 'cgroup',
      status: 'ok',
      detail: 'limited to memory 8 GiB',
      fix: '',
    });
    expect(checkCgroup(treeOf(limits)).detail).toBe('no limits');
  });

  it('warns when temporary space is short', () => {
    expect(checkTmp(facts).status).toBe('ok');
    expect(checkTmp({ ...facts, tmpFreeBytes: 2 ** 29 })).toMatchObject({
      status: 'warn',
      detail: '512 MiB free in /tmp',
    });
  });
});

describe('the whole', () => {
  it('gives every warning and failure a fix, on a bare tree and on this machine', () => {
    for (const root of [treeOf({}), fileRoot()]) {
      for (const check of runChecks(root, forbidden)) {
        expect([check.name, check.fix === '']).toEqual([check.name, check.status === 'ok']);
      }
    }
  });

  it('is not ready when something failed, and says so', () => {
    const checks = runChecks(treeOf({}), forbidden);
    expect(isReady(checks)).toBe(false);
    const text = formatChecks(checks, false);
    expect(text).toMatch(/^fail {2}io_uring/m);
    expect(text).toMatch(/\nnot ready: 1 failed, /);
    const fine = checks.filter((check) => check.status === 'ok');
    expect(formatChecks(fine, false)).toMatch(/\nready: 0 failed, 0 warnings, /);
  });
});
