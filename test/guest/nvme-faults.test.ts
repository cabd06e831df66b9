// What goes wrong with NVMe drives, on controllers of QEMU: every operation ends, with the error
// that says what it was, and what others do goes on.

import { describe, expect, it } from 'vitest';
import { needGuest } from './available.js';
import { device, nvme, throttle } from './devices.js';
import { type Guest, startGuest } from './guest.js';

const LIMIT_MS = 300_000;
/** A slice of what \`npm run soak -- nvme-resets\` does. */
const RESETS = 5;
const PROGRAMS = 'dist/test/guest/programs';
const EIO = 5;
const ENOSPC = 28;
const FLAWED = '0000:00:05.0';
const SLOW = '0000:00:06.0';
const FIRST = '0000:00:07.0';
const SECOND = '0000:00:08.0';

const text = (pattern: RegExp) => expect.stringMatching(pattern) as string;
const count = expect.any(Number) as number;

/** Has the drive of `brake` take minutes for what it gets, or nothing any more. */
async function brake(guest: Guest, bytesPerSecond: number): Promise<void> {
  const value = { 'bps-total': bytesPerSecond };
  await guest.qmp.execute('qom-set', { path: '/objects/brake', property: 'limits', value });
}

const DEVICES = [
  ...throttle('brake'),
  ...nvme({ id: 'flawed', serial: 'flawed', namespaces: ['flawed'], more: { addr: '5.0' } }),
  ...nvme({ id: 'slow', serial: 'slow', namespaces: ['slow'], more: { addr: '6.0' } }),
  ...device('nvme-subsys', { id: 'both', nqn: 'both' }),
  ...device('nvme', { id: 'first', serial: 'shared', subsys: 'both', addr: '7.0' }),
  ...device('nvme', { id: 'second', serial: 'shared', subsys: 'both', addr: '8.0' }),
  ...device('nvme-ns', { bus: 'first', drive: 'one', nsid: 1 }),
  ...device('nvme-ns', { bus: 'first', drive: 'two', nsid: 2 }),
];

describe('an NVMe controller with faults', () => {
  it(
    'has each of them end in its error',
    async (context) => {
      await needGuest(context);
      await using guest = await startGuest({
        name: 'with faults',
        script: [
          `node ${PROGRAMS}/nvme-refusals.js ${SLOW} ${FLAWED}`,
          `node ${PROGRAMS}/nvme-faults.js ${FLAWED} ${SLOW} ${FIRST} ${SECOND}`,
          `node ${PROGRAMS}/nvme-resets.js ${SLOW}`,
        ].join(' &&\n'),
        disks: {
          flawed: {
            faults: [
              { iotype: 'read', sector: 100, errno: EIO },
              { iotype: 'write', sector: 200, errno: ENOSPC },
              { iotype: 'read', sector: 300, errno: EIO, once: true },
            ],
          },
          slow: { throttle: 'brake' },
          one: {},
          two: {},
        },
        devices: DEVICES,
        timeoutMs: LIMIT_MS,
      });
      expect(await guest.message()).toBe('brake');
      await brake(guest, 64);
      guest.send('on');
      expect(await guest.message()).toBe('release');
      await brake(guest, 0);
      guest.send('off');
      expect(await guest.message()).toBe('running');
      for (let round = 0; round < RESETS; round++) {
        guest.send('reset');
        expect(await guest.message()).toBe('reset');
      }
      guest.send('end');
      const { exitCode, stderr, results } = await guest.done;
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
      expect(results['no such namespace']).toEqual({
        code: 'NO_SUCH_NAMESPACE',
        message: text(/no namespace 7$/),
        hint: 'it has 1',
      });
      checkRefusals(results);
      checkMedia(results);
      checkStuck(results);
      checkNamespaces(results);
      expect(results['files left open']).toEqual([]);
      const sound = { wrong: 0, touched: 0, codes: { OK: count }, explained: {} };
      expect(results['loads']).toMatchObject([sound, sound, sound]);
      expect(results['counters']).toMatchObject({ resets: RESETS, timeouts: 0 });
    },
    LIMIT_MS + 10_000,
  );
});

function checkRefusals(results: Record<string, unknown>): void {
  const refused = (code: string, hint: RegExp) => ({ code, message: text(/./), hint: text(hint) });
  expect(results).toMatchObject({
    'no module': refused('VFIO_MISSING', /modprobe vfio-pci/),
    'not bound': refused('NOT_BOUND', /penstock bind 0000:00:06\.0/),
    far: refused('IOVA_OUT_OF_RANGE', /lower domain/),
    denied: refused('PERMISSION_DENIED', /chown/),
    'too large': { code: 'NO_MEMORY', message: text(/locked for DMA: ulimit -l/) },
    small: 0,
    'open with too little': refused('OUT_OF_LOCKED_MEMORY', /ulimit -l/),
    'other keys': refused('DEVICE_BUSY', /same keys/),
  });
}

function checkMedia(results: Record<string, unknown>): void {
  expect(results['unreadable']).toEqual({
    code: 'MEDIA_ERROR',
    message: text(/READ_ERROR \(0x281\)/),
    hint: text(/./),
    retries: 4,
  });
  expect(results['unwritable']).toMatchObject({
    code: 'MEDIA_ERROR',
    message: text(/WRITE_FAULT \(0x280\)/),
    retries: 4,
  });
  expect(results['readable at the second try']).toMatchObject({ code: 'OK', retries: 1 });
  expect(results['next to it']).toMatchObject({ code: 'OK', retries: 0 });
  expect(results['for people']).toMatchObject({ code: 'MEDIA_ERROR', hint: text(/./) });
}

function checkStuck(results: Record<string, unknown>): void {
  expect(results['stuck']).toEqual({
    codes: { 1: 'TIMED_OUT', 2: 'OK', 3: 'OK' },
    explained: { code: 'TIMED_OUT', message: text(/./), hint: text(/./), detail: 0 },
    aborts: 1,
    resets: 1,
    queue: { retries: 2, timeouts: 1, resets: 1 },
  });
  expect(results['after the reset']).toBe('OK');
}

function checkNamespaces(results: Record<string, unknown>): void {
  expect(results['detached']).toMatchObject({
    wrong: 0,
    touched: 0,
    codes: { OK: count, DEVICE_GONE: count },
    explained: { DEVICE_GONE: { message: text(/./), hint: text(/./) } },
  });
  expect(results['blocks of what went']).toBe(0);
  expect(results['opening it']).toMatchObject({ code: 'NO_SUCH_NAMESPACE', hint: 'it has 1' });
  expect(results['blocks of what came']).toBe(2 ** 17);
  expect(results['its neighbour']).toMatchObject({ wrong: 0, touched: 0, explained: {} });
  const changed = { kind: 'notice', page: 4, nsids: [2] };
  expect(results['events']).toEqual([changed, changed]);
}
