// PCI functions through the kernel's VFIO, on QEMU's NVMe controllers behind Intel's IOMMU.

import { expect, it } from 'vitest';
import { needGuest } from './available.js';
import { device, nvme, rootPort } from './devices.js';
import { startGuest } from './guest.js';

const LIMIT_MS = 240_000;
/** Version 1.4. */
const VS = 0x10400;
const ONES = 0xffffffff;

/** An error that says what it is and what to do. */
function refused(code: string, hint: RegExp, message = /./): unknown {
  return {
    code,
    hint: expect.stringMatching(hint) as string,
    message: expect.stringMatching(message) as string,
  };
}

const disk = { bytes: 2 ** 20 };

it(
  'a function is opened, used and given back',
  async (context) => {
    await needGuest(context);
    await using guest = await startGuest({
      command: ['node', 'dist/test/guest/programs/vfio.js'],
      disks: { one: disk, two: disk, three: disk, four: disk },
      devices: [
        ...rootPort('hatch', 1),
        ...nvme({ id: 'pulled', serial: 'pulled', bus: 'hatch', namespaces: ['one'] }),
        ...nvme({ id: 'steady', serial: 'steady', namespaces: ['two'], more: { addr: '5.0' } }),
        // The functions of one device are one group.
        ...device('nvme', { serial: 'first', addr: '6.0', multifunction: true, drive: 'three' }),
        ...device('nvme', { serial: 'second', addr: '6.1', drive: 'four' }),
      ],
      timeoutMs: LIMIT_MS,
    });
    expect(await guest.message(LIMIT_MS)).toBe('pull');
    await guest.qmp.execute('device_del', { id: 'pulled' });
    await guest.qmp.event('DEVICE_DELETED', ({ data }) => data?.['device'] === 'pulled');
    guest.send('pulled');
    const { exitCode, stderr, results, kernelLog } = await guest.done;
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });

    // What stands in the way.
    expect(results).toMatchObject({
      'no module': refused('VFIO_MISSING', /modprobe vfio-pci/),
      'no device': refused('NO_SUCH_DEVICE', /penstock status/),
      'not bound': refused('NOT_BOUND', /penstock bind 0000:00:05\.0/, /driver nvme/),
      denied: refused('PERMISSION_DENIED', /chown .* \/dev\/vfio\/\d+/),
      'not viable': refused('GROUP_NOT_VIABLE', /bind 0000:00:06\.0/, /0000:00:06\.0 \(nvme\)/),
      busy: refused('GROUP_BUSY', /fuser/),
    });

    // What it is, and its registers.
    expect(results).toMatchObject({
      identity: { vendor: 0x1b36, device: 0x10, classCode: 0x010802 },
      vectors: 65,
      capabilities: expect.arrayContaining([
        { id: 0x11, offset: 0x40, extended: false },
        { id: 0x10, offset: 0x80, extended: false },
      ]) as unknown,
      registers: { bytes: 0x4000, vs: VS, byCall: VS },
      doorbells: 16,
      'no such bar': refused('NO_SUCH_BAR', /it has 0/),
    });

    // Memory. The window of interrupts is not translated; a device cannot write what it may only
    // read, though QEMU's says that it did; and the kernel log has the fault.
    expect(results).toMatchObject({
      ranges: [
        { start: 0, last: 0xfedfffff },
        { start: 0xfef00000, last: 2 ** 39 - 1 },
      ],
      'before reach': [0, 0],
      reach: [true, true],
      'after reach': [3, 1],
      identify: 0,
      serial: 'steady',
      'read-only is untouched': true,
      closed: { stale: true, byte: 0 },
      reaped: { stale: false, address: refused('BAD_ADDRESS', /./) },
      far: refused('IOVA_OUT_OF_RANGE', /0xfef00000-0x7fffffffff/, /0x8000000000-/),
    });
    expect(kernelLog).toMatch(/\[DMA Write.*00:05\.0.*Write access is not set/);

    // Interrupts, resets, registers that vanish, and the end.
    expect(results).toMatchObject({
      'vector control': 0,
      interrupt: 0,
      'after reset': { cc: 0, csts: 0, vs: VS, gone: false },
      'memory bit cleared': {
        before: { lost: false, gone: false },
        value: ONES,
        lost: true,
        gone: true,
      },
      'closing took': true,
      descriptors: 0,
    });

    // Other environments.
    expect(results).toMatchObject({
      worker: { vs: VS, busy: 'GROUP_BUSY', again: VS },
      attached: {
        ...{ vs: VS, byCall: VS, reached: true, map: 3, eventfds: 2, control: 260, gone: false },
        refused: [true, true, true, true],
      },
      'attached after close': { vs: ONES, gone: true, lost: true, again: 'DEVICE_GONE' },
    });

    // The kernel asks for the device back while it works, and gets it.
    expect(results).toMatchObject({
      'asked to remove': { vs: VS, gone: false },
      removed: refused('NO_SUCH_DEVICE', /penstock status/),
    });
  },
  LIMIT_MS + 10_000,
);

it(
  'a function that loses its power is gone, and holds up nobody',
  async (context) => {
    await needGuest(context);
    await using guest = await startGuest({
      command: ['node', 'dist/test/guest/programs/vfio-vanish.js'],
      disks: { one: disk },
      modules: ['vfio-pci'],
      devices: [
        ...['-global', 'ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off'],
        ...rootPort('hatch', 1),
        ...nvme({ serial: 'vanishing', bus: 'hatch', namespaces: ['one'] }),
      ],
      timeoutMs: LIMIT_MS,
    });
    expect(await guest.message(LIMIT_MS)).toBe('done');
    const { results } = guest;
    expect(results).toMatchObject({
      before: { vs: VS, gone: false },
      after: { vs: 0, gone: true, lost: false },
      reset: { code: 'TIMED_OUT', loopTurned: true },
      registers: ONES,
      close: { code: 'done', loopTurned: true },
    });
  },
  LIMIT_MS + 10_000,
);
