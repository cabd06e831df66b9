import { describe, expect, it } from 'vitest';
import {
  bindFunctions,
  bindState,
  readRecord,
  recordedAddresses,
  shellLine,
  unbindFunctions,
} from '../../lib/pci/index.js';
import { type MadeUpDevice, MadeUpKernel, systemError } from './made-up-kernel.js';

const DISK = '0000:00:04.0';
const NIC = '0000:00:05.0';
const RECORD = `/run/penstock/bind-${DISK}.json`;
const disk: MadeUpDevice = { address: DISK, natural: 'nvme', group: '4' };
const nic: MadeUpDevice = { address: NIC, natural: 'e1000e', group: '5', classCode: '0x020000' };

/** What a device is: driver, override, and whether a record of it is left. */
function stateOf(kernel: MadeUpKernel, address = DISK) {
  return {
    driver: kernel.driverOf(address),
    override: kernel.overrideOf(address),
    recorded: recordedAddresses(kernel.machine.root).includes(address),
  };
}
const asBefore = { driver: 'nvme', override: '(null)', recorded: false };
const taken = { driver: 'vfio-pci', override: 'vfio-pci', recorded: true };

describe('bind', () => {
  it('gives a device to vfio-pci, remembering first what it was', async () => {
    const kernel = new MadeUpKernel([disk]);
    const [changed] = await bindFunctions(kernel.machine, [DISK], { uid: 1000 });
    expect(changed).toMatchObject({ from: 'nvme', to: 'vfio-pci', node: '/dev/vfio/4' });
    expect(stateOf(kernel)).toEqual(taken);
    expect(kernel.changes).toEqual([
      `save ${RECORD}`,
      `write /sys/bus/pci/devices/${DISK}/driver_override`,
      `write /sys/bus/pci/devices/${DISK}/driver/unbind`,
      'write /sys/bus/pci/drivers_probe',
      'chown /dev/vfio/4',
    ]);
    expect(kernel.machine.ownerOf('/dev/vfio/4')).toBe(1000);
    expect(readRecord(kernel.machine.root, DISK)).toEqual({
      address: DISK,
      vendor: 0x1b36,
      device: 0x10,
      driver: 'vfio-pci',
      originalDriver: 'nvme',
      originalOverride: '',
      since: '2026-01-02T03:04:05.000Z',
    });
  });

  it('keeps records where only root reads', async () => {
    const kernel = new MadeUpKernel([disk]);
    await bindFunctions(kernel.machine, [DISK]);
    const { statSync } = await import('node:fs');
    expect(statSync(`${kernel.folder}/run/penstock`).mode & 0o777).toBe(0o700);
    expect(statSync(`${kernel.folder}${RECORD}`).mode & 0o777).toBe(0o600);
  });

  it('loads the module where the driver is not there, before anything else', async () => {
    const kernel = new MadeUpKernel([disk]);
    kernel.removeDriver('vfio-pci');
    await expect(bindFunctions(kernel.machine, [DISK])).rejects.toMatchObject({
      code: 'MODULE_MISSING',
      exitCode: 3,
    });
    expect(kernel.changes).toEqual([]);
    kernel.modules.add('vfio-pci');
    const [changed] = await bindFunctions(kernel.machine, [DISK]);
    expect(changed?.steps[0]).toEqual({ do: 'load', module: 'vfio-pci' });
    expect(kernel.changes[0]).toBe('load vfio-pci');
    expect(stateOf(kernel)).toEqual(taken);
  });

  it('prints what it would do, and does nothing of it', async () => {
    const kernel = new MadeUpKernel([disk]);
    const options = { dryRun: true, uid: 1000 };
    const [changed] = await bindFunctions(kernel.machine, [DISK], options);
    expect(changed?.steps.map(shellLine)).toEqual([
      `# ${RECORD} remembers: nvme`,
      `echo vfio-pci > /sys/bus/pci/devices/${DISK}/driver_override`,
      `echo ${DISK} > /sys/bus/pci/devices/${DISK}/driver/unbind`,
      `echo ${DISK} > /sys/bus/pci/drivers_probe`,
      `# ${DISK} now belongs to vfio-pci`,
      '# /dev/vfio/4 is there',
      'chown 1000 /dev/vfio/4',
    ]);
    expect(kernel.changes).toEqual([]);
    expect(stateOf(kernel)).toEqual(asBefore);
  });

  it('takes a device without driver, and drivers other than vfio-pci without IOMMU', async () => {
    const kernel = new MadeUpKernel([{ address: DISK, natural: 'nvme', bound: false }]);
    kernel.modules.add('uio_pci_generic');
    await bindFunctions(kernel.machine, [DISK], { driver: 'uio_pci_generic' });
    expect(stateOf(kernel)).toMatchObject({ driver: 'uio_pci_generic', recorded: true });
    await unbindFunctions(kernel.machine, [DISK]);
    expect(stateOf(kernel)).toEqual({ ...asBefore, driver: '' });
  });

  it('goes back to the first driver also after a second binding', async () => {
    const kernel = new MadeUpKernel([{ ...disk, override: 'nvme' }]);
    kernel.modules.add('uio_pci_generic');
    await bindFunctions(kernel.machine, [DISK]);
    await bindFunctions(kernel.machine, [DISK], { driver: 'uio_pci_generic' });
    expect(stateOf(kernel).driver).toBe('uio_pci_generic');
    await unbindFunctions(kernel.machine, [DISK]);
    expect(stateOf(kernel)).toEqual({ ...asBefore, override: 'nvme' });
  });

  it('changes nothing where the driver has it already, except the owner', async () => {
    const kernel = new MadeUpKernel([{ ...disk, natural: 'vfio-pci' }]);
    await bindFunctions(kernel.machine, [DISK], { uid: 7 });
    expect(kernel.changes).toEqual(['chown /dev/vfio/4']);
    expect(stateOf(kernel).recorded).toBe(false);
  });

  it('names the driver that did not take the device, and puts everything back', async () => {
    const kernel = new MadeUpKernel([disk, nic]);
    kernel.modules.add('picky');
    kernel.refusing.add('picky');
    await expect(
      bindFunctions(kernel.machine, [DISK, NIC], { driver: 'picky' }),
    ).rejects.toMatchObject({
      code: 'BIND_FAILED',
      message: expect.stringContaining('picky did not take') as string,
      hint: expect.stringContaining('What was changed is put back.') as string,
    });
    expect(stateOf(kernel)).toEqual(asBefore);
  });

  it('changes nothing when the second of two may not be taken', async () => {
    const kernel = new MadeUpKernel([disk, { ...nic, group: undefined as never }]);
    await expect(bindFunctions(kernel.machine, [DISK, NIC])).rejects.toMatchObject({
      code: 'NO_IOMMU',
      exitCode: 3,
    });
    expect(kernel.changes).toEqual([]);
  });
});

/** Changes of one run without faults: the places where one can come. */
async function changesOf(run: (kernel: MadeUpKernel) => Promise<unknown>, kernel: MadeUpKernel) {
  const before = kernel.changes.length;
  await run(kernel);
  return kernel.changes.length - before;
}

/** Fails change `index` from now on, and every later one when it is a crash. */
function failAt(kernel: MadeUpKernel, index: number, isCrash: boolean): void {
  const start = kernel.changes.length;
  let count = start;
  kernel.beforeChange = () => {
    const at = count++ - start;
    if (at === index || (isCrash && at > index)) throw systemError('EIO', 'made up');
  };
}

const bindTwo = (kernel: MadeUpKernel) => bindFunctions(kernel.machine, [DISK, NIC], { uid: 1000 });
const unbindTwo = (kernel: MadeUpKernel) => unbindFunctions(kernel.machine, [DISK, NIC]);

async function twoDevices(isBound: boolean): Promise<MadeUpKernel> {
  const kernel = new MadeUpKernel([disk, nic]);
  if (isBound) await bindTwo(kernel);
  return kernel;
}

function expectAsBefore(kernel: MadeUpKernel): void {
  expect(stateOf(kernel)).toEqual(asBefore);
  expect(stateOf(kernel, NIC)).toEqual({ ...asBefore, driver: 'e1000e' });
  expect(kernel.has('/dev/vfio/4') || kernel.has('/dev/vfio/5')).toBe(false);
}

describe('a change that fails', () => {
  it('while binding: everything is put back, whichever it was', async () => {
    const count = await changesOf(bindTwo, await twoDevices(false));
    expect(count).toBe(10);
    for (let index = 0; index < count; index++) {
      const kernel = await twoDevices(false);
      failAt(kernel, index, false);
      await expect(bindTwo(kernel)).rejects.toMatchObject({ code: 'BIND_FAILED' });
      expectAsBefore(kernel);
    }
  });

  it('while unbinding: the record stays, and the next unbind ends it', async () => {
    const count = await changesOf(unbindTwo, await twoDevices(true));
    expect(count).toBe(8);
    for (let index = 0; index < count; index++) {
      const kernel = await twoDevices(true);
      failAt(kernel, index, false);
      await expect(unbindTwo(kernel)).rejects.toMatchObject({
        code: 'UNBIND_FAILED',
        hint: expect.stringContaining('penstock unbind') as string,
      });
      kernel.beforeChange = () => {};
      await unbindFunctions(kernel.machine, recordedAddresses(kernel.machine.root));
      expectAsBefore(kernel);
    }
  });
});

describe('a crash', () => {
  it('at any change of binding leaves what unbind repairs', async () => {
    const count = await changesOf(bindTwo, await twoDevices(false));
    const states = new Set<string>();
    for (let index = 0; index < count; index++) {
      const kernel = await twoDevices(false);
      failAt(kernel, index, true);
      await expect(bindTwo(kernel)).rejects.toThrow('EIO');
      kernel.beforeChange = () => {};
      const { root } = kernel.machine;
      for (const address of recordedAddresses(root)) {
        states.add(bindState(root, readRecord(root, address)!));
      }
      await unbindFunctions(kernel.machine, recordedAddresses(root));
      expectAsBefore(kernel);
    }
    expect([...states].sort()).toEqual(['bound', 'half-bound', 'unchanged']);
  });

  it('at any change of unbinding leaves what unbind repairs', async () => {
    const count = await changesOf(unbindTwo, await twoDevices(true));
    for (let index = 0; index < count; index++) {
      const kernel = await twoDevices(true);
      failAt(kernel, index, true);
      await expect(unbindTwo(kernel)).rejects.toMatchObject({ code: 'UNBIND_FAILED' });
      kernel.beforeChange = () => {};
      await unbindFunctions(kernel.machine, recordedAddresses(kernel.machine.root));
      expectAsBefore(kernel);
    }
  });

  it('at any change of binding can also be gone on from', async () => {
    const count = await changesOf(bindTwo, await twoDevices(false));
    for (let index = 0; index < count; index++) {
      const kernel = await twoDevices(false);
      failAt(kernel, index, true);
      await expect(bindTwo(kernel)).rejects.toThrow('EIO');
      kernel.beforeChange = () => {};
      await bindTwo(kernel);
      expect(stateOf(kernel)).toEqual(taken);
      await unbindTwo(kernel);
      expectAsBefore(kernel);
    }
  });
});

describe('unbind', () => {
  it('goes back to the driver, and has nothing to do the second time', async () => {
    const kernel = await twoDevices(true);
    const changed = await unbindTwo(kernel);
    expect(changed.map(({ from, to }) => [from, to])).toEqual([
      ['vfio-pci', 'nvme'],
      ['vfio-pci', 'e1000e'],
    ]);
    expectAsBefore(kernel);
    const count = kernel.changes.length;
    expect((await unbindTwo(kernel)).map(({ steps }) => steps)).toEqual([[], []]);
    expect(kernel.changes).toHaveLength(count);
  });

  it('prints what it would do, and does nothing of it', async () => {
    const kernel = await twoDevices(true);
    const [changed] = await unbindFunctions(kernel.machine, [DISK], { dryRun: true });
    expect(changed?.steps.map(shellLine)).toEqual([
      `echo '' > /sys/bus/pci/devices/${DISK}/driver_override`,
      `echo ${DISK} > /sys/bus/pci/devices/${DISK}/driver/unbind`,
      `echo ${DISK} > /sys/bus/pci/drivers/nvme/bind`,
      `# ${DISK} now belongs to nvme`,
      `rm -f ${RECORD}`,
    ]);
    expect(stateOf(kernel)).toEqual(taken);
  });

  it('without a record leaves the choice to the kernel', async () => {
    const kernel = new MadeUpKernel([disk]);
    await bindFunctions(kernel.machine, [DISK]);
    kernel.machine.remove(RECORD);
    await unbindFunctions(kernel.machine, [DISK]);
    expect(stateOf(kernel)).toEqual(asBefore);
  });

  it('with a record that nobody can read does so too, where no kernel driver has it', async () => {
    const kernel = new MadeUpKernel([disk]);
    await bindFunctions(kernel.machine, [DISK]);
    kernel.put(RECORD, '{ "schema":');
    await unbindFunctions(kernel.machine, [DISK]);
    expect(stateOf(kernel)).toEqual(asBefore);

    kernel.put(RECORD, 'nonsense');
    kernel.put(`/sys/bus/pci/devices/${DISK}/driver_override`, 'vfio-pci');
    await unbindFunctions(kernel.machine, [DISK]);
    expect(stateOf(kernel)).toEqual(asBefore);
  });

  it('forgets a device that went, and leaves another in its place alone', async () => {
    const gone = await twoDevices(true);
    gone.unplug(DISK);
    const record = readRecord(gone.machine.root, DISK)!;
    expect(bindState(gone.machine.root, record)).toBe('gone');
    await unbindFunctions(gone.machine, [DISK]);
    expect(recordedAddresses(gone.machine.root)).toEqual([NIC]);

    const replaced = await twoDevices(true);
    replaced.put(`/sys/bus/pci/devices/${DISK}/device`, '0x9999');
    expect(bindState(replaced.machine.root, record)).toBe('replaced');
    await unbindFunctions(replaced.machine, [DISK]);
    expect(stateOf(replaced)).toEqual({ ...taken, recorded: false });
  });

  it('loads the module of a driver that was unloaded meanwhile', async () => {
    const kernel = await twoDevices(true);
    kernel.removeDriver('nvme');
    await unbindTwo(kernel);
    expectAsBefore(kernel);
    expect(kernel.changes).toContain('load nvme');
  });

  it('refuses what a process uses, and names the process', async () => {
    const kernel = await twoDevices(true);
    kernel.addProcess(4711, 'node serve.js nvme:0000:00:04.0/1', '/dev/null', '/dev/vfio/4');
    await expect(unbindTwo(kernel)).rejects.toMatchObject({
      code: 'DEVICE_IN_USE',
      exitCode: 1,
      message: expect.stringContaining(
        '/dev/vfio/4 is open in process 4711 (node serve.js nvme:0000:00:04.0/1)',
      ) as string,
      hint: 'end process 4711',
    });
    expect(stateOf(kernel)).toEqual(taken);
    expect(stateOf(kernel, NIC)).toMatchObject({ driver: 'vfio-pci' });
  });

  it('refuses what a process uses that cannot be seen', async () => {
    const kernel = await twoDevices(true);
    kernel.busy.add('/dev/vfio/5');
    await expect(unbindTwo(kernel)).rejects.toMatchObject({
      code: 'DEVICE_IN_USE',
      message: expect.stringContaining('a process that cannot be seen from here') as string,
    });
  });

  it('repairs a device that somebody else gave to a driver, unless that one uses it', async () => {
    const kernel = await twoDevices(true);
    kernel.addDriver('other');
    const { machine } = kernel;
    machine.write(`/sys/bus/pci/devices/${DISK}/driver_override`, 'other');
    machine.write(`/sys/bus/pci/devices/${DISK}/driver/unbind`, DISK);
    machine.write('/sys/bus/pci/drivers_probe', DISK);
    kernel.put('/sys/devices/pci0000:00/0000:00:04.0/sriov_numvfs', '2');
    await expect(unbindTwo(kernel)).rejects.toMatchObject({ code: 'DEVICE_IN_USE' });
    kernel.put('/sys/devices/pci0000:00/0000:00:04.0/sriov_numvfs', '0');
    await unbindTwo(kernel);
    expectAsBefore(kernel);
  });
});

describe('permission', () => {
  it('is asked for before anything is changed', async () => {
    const kernel = new MadeUpKernel([disk]);
    const machine = { ...kernel.machine, canWrite: () => false };
    const denied = { code: 'PERMISSION_DENIED', exitCode: 3 };
    await expect(bindFunctions(machine, [DISK])).rejects.toMatchObject(denied);
    expect(kernel.changes).toEqual([]);
    await bindFunctions(machine, [DISK], { dryRun: true });
    await bindFunctions(kernel.machine, [DISK]);
    await expect(unbindFunctions(machine, [DISK])).rejects.toMatchObject(denied);
    await unbindFunctions(machine, [DISK], { dryRun: true });
  });
});
