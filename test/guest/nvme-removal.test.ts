// NVMe controllers that go and come while they are used: asked for, hot-added, pulled out.

import { describe, expect, it } from 'vitest';
import { needGuest } from './available.js';
import { device, nvme } from './devices.js';
import { type Guest, GuestError, startGuest } from './guest.js';

const LIMIT_MS = 200_000;
const ATTEMPTS = 3;
const SLOTS = { asked: 8, added: 9, pulled: 10 };

function port(id: keyof typeof SLOTS, chassis: number): string[] {
  const addr = SLOTS[id].toString(16);
  return device('pcie-root-port', { id, chassis, slot: chassis, addr });
}

const addressOf = (id: keyof typeof SLOTS) =>
  `0000:00:${SLOTS[id].toString(16).padStart(2, '0')}.0`;

/** A load that a controller left: nothing lost or misplaced, and all of it completed. */
const ENDED = {
  reads: expect.any(Number) as number,
  writes: expect.any(Number) as number,
  wrong: 0,
  touched: 0,
  codes: { OK: expect.any(Number) as number, DEVICE_GONE: expect.any(Number) as number },
  explained: {
    DEVICE_GONE: {
      message: expect.any(String) as string,
      hint: expect.stringMatching(/./) as string,
    },
  },
};

const LOST = {
  loads: [ENDED, ENDED],
  state: 'GONE',
  queue: {
    code: 'DEVICE_GONE',
    message: expect.stringContaining('0000:') as string,
    hint: expect.stringMatching(/./) as string,
  },
  closedInTime: true,
};

/** Does with QEMU's devices what the program asks for; the last message is `done`. */
async function serve(guest: Guest): Promise<void> {
  expect(await guest.message()).toBe('ask');
  await guest.qmp.execute('device_del', { id: 'first' });
  expect(await guest.message()).toBe('add');
  const { qmp } = guest;
  await qmp.execute('device_add', {
    driver: 'nvme',
    id: 'new',
    serial: 'new',
    bus: 'added',
    drive: 'b',
  });
  expect(await guest.message()).toBe('done');
}

/** Reports of the program in a guest. */
async function run(): Promise<Record<string, unknown>> {
  await using guest = await startGuest({
    command: [
      ...['node', 'dist/test/guest/programs/nvme-removal.js'],
      ...[addressOf('asked'), addressOf('added'), addressOf('pulled')],
    ],
    disks: { a: {}, b: {}, c: {} },
    devices: [
      // The ports' own hotplug: what ACPI does has no surprises.
      ...['-global', 'ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off'],
      ...port('asked', 1),
      ...port('added', 2),
      ...port('pulled', 3),
      ...nvme({ id: 'first', serial: 'first', bus: 'asked', namespaces: ['a'] }),
      ...nvme({ id: 'last', serial: 'last', bus: 'pulled', namespaces: ['c'] }),
    ],
    timeoutMs: LIMIT_MS,
  });
  await serve(guest);
  expect(guest.stderr).toBe('');
  return guest.results;
}

/**
 * QEMU 7.2 itself ends now and then when a controller goes with commands in flight: a doorbell rung
 * meanwhile leads to lists that are freed (SIGSEGV; the program avoids it), or the guest's kernel
 * masks an interrupt whose table has gone (an assertion of hw/pci/msix.c, SIGABRT). Nothing is
 * learned from such a run.
 */
async function runUntilQemuSurvives(): Promise<Record<string, unknown>> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await run();
    } catch (error) {
      const isQemu = error instanceof GuestError && /SIG(SEGV|ABRT)/.test(error.message);
      if (!isQemu || attempt === ATTEMPTS) throw error;
    }
  }
}

describe('an NVMe controller', () => {
  it(
    'may be asked for, added, and pulled out, under load',
    async (context) => {
      await needGuest(context);
      const results = await runUntilQemuSurvives();
      expect(results['asked for']).toEqual(LOST);
      expect(results['open again']).toMatchObject({ code: 'NO_SUCH_DEVICE' });
      expect(results['files left open']).toEqual([]);
      expect(results['added']).toMatchObject({ wrong: 0, touched: 0, explained: {} });
      expect(results['pulled out']).toEqual(LOST);
    },
    ATTEMPTS * LIMIT_MS,
  );
});
