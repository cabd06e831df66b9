// The harness itself. A boot takes seconds, so that each of these guests is asked many things.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { needGuest } from './available.js';
import { nvme, rootPort } from './devices.js';
import { GuestError, repositoryRoot, runGuest, startGuest } from './guest.js';
import { nothingOf, processesOf } from './traces.js';

const LIMIT_MS = 180_000;
const tour = (...args: string[]) => ['node', 'dist/test/guest/programs/tour.js', ...args];

describe('a guest', () => {
  it(
    'runs a program with devices of QEMU, VFIO and an IOMMU',
    async (context) => {
      await needGuest(context);
      await using guest = await startGuest({
        command: tour('an argument', "and 'another'"),
        env: { TOUR: '$HOME "quoted"' },
        disks: { disk: { bytes: 2 ** 26 } },
        devices: nvme({ serial: 'of-the-tour', namespaces: ['disk'] }),
        timeoutMs: LIMIT_MS,
      });
      expect(await guest.message()).toEqual({ question: 'what now?' });
      guest.send('go on');
      const { exitCode, stdout, stderr, results, kernelLog } = await guest.done;
      expect({ exitCode, stdout }).toEqual({ exitCode: 7, stdout: 'the test says go on\n' });
      expect(stderr).toBe(`${'x'.repeat(100_000)}\n`);
      const group = (results['controller'] as { group: number }).group;
      expect(results).toEqual({
        node: process.version,
        arguments: ['an argument', "and 'another'"],
        variable: '$HOME "quoted"',
        processors: [0, 1],
        'vfio before': false,
        controller: {
          address: expect.stringMatching(/^0000:00:/) as string,
          vendor: 0x1b36,
          device: 0x0010,
          class: 0x010802,
          driver: undefined,
          group: expect.any(Number) as number,
        },
        'vfio after': true,
        groups: [String(group), 'vfio'],
        serial: 'of-the-tour',
        sectors: 2 ** 17,
      });
      expect(kernelLog).toMatch(/^\[\d+\.\d{6}\] Linux version/m);
      expect(kernelLog).toContain('DMAR: Intel(R) Virtualization Technology for Directed I/O');
      expect(readFileSync(guest.disks['disk']!, 'utf8')).toMatch(/^written in the guest\.\.\./);
      await guest.stop();
      expect(existsSync(guest.folder)).toBe(false);
      await nothingOf(guest.folder);
    },
    LIMIT_MS + 10_000,
  );

  it(
    'can be without an IOMMU, have a device pulled, and share files, next to one that crashes',
    async (context) => {
      await needGuest(context);
      const crashing = runGuest({
        name: 'that crashes',
        script: 'echo before; echo c >/proc/sysrq-trigger; echo after',
        timeoutMs: LIMIT_MS,
      }).catch((error: unknown) => error);
      await using guest = await startGuest({
        script: [
          'ls /sys/class/iommu | wc -l',
          'cat "$FOLDER/note"',
          'find /sys/bus/pci/devices/ | grep -c :01:00.0$',
          'echo present >&3',
          'until [ ! -e /sys/bus/pci/devices/0000:01:00.0 ]; do sleep 0.1; done',
          'read line',
          'echo "$line" >"$FOLDER/answer"',
        ].join('\n'),
        iommu: false,
        disks: { disk: { bytes: 2 ** 20 } },
        devices: [
          ...rootPort('hatch', 1),
          ...nvme({ id: 'pulled', serial: 'p', bus: 'hatch', namespaces: ['disk'] }),
        ],
        timeoutMs: LIMIT_MS,
      });
      writeFileSync(join(guest.folder, 'note'), 'a note\n');
      expect(await guest.qmp.execute('query-status')).toMatchObject({ running: true });
      await expect(guest.qmp.execute('no-such-thing')).rejects.toThrow('QMP no-such-thing');
      expect(await guest.message()).toBe('present');
      await guest.qmp.execute('device_del', { id: 'pulled' });
      await guest.qmp.event('DEVICE_DELETED', ({ data }) => data?.['device'] === 'pulled');
      guest.send('pulled');
      expect(await guest.done).toMatchObject({ exitCode: 0, stdout: '0\na note\n1\n' });
      expect(readFileSync(join(guest.folder, 'answer'), 'utf8')).toBe('pulled\n');

      const error = await crashing;
      expect(error).toBeInstanceOf(GuestError);
      expect(error).toMatchObject({ reason: 'crashed' });
      expect(String(error)).toContain('guest that crashes: crashed');
      expect(String(error)).toContain('sysrq triggered crash');
      expect(String(error)).toMatch(/stdout:\nbefore$/);
    },
    LIMIT_MS + 10_000,
  );

  it('is ended at its time limit, and by its stop, and leaves nothing', async (context) => {
    await needGuest(context);
    const late = await startGuest({ name: 'too slow', script: 'sleep 1000', timeoutMs: 1_000 });
    const stopped = await startGuest({ name: 'not needed', script: 'sleep 1000' });
    await expect(late.done).rejects.toMatchObject({ reason: 'timeout' });
    const next = stopped.message().catch((error: unknown) => error);
    await stopped.stop();
    await expect(stopped.done).rejects.toMatchObject({ reason: 'stopped' });
    expect(String(await next)).toContain('guest not needed: stopped');
    await late.stop();
    for (const guest of [late, stopped]) await nothingOf(guest.folder);
  });

  it('is begun anew when its boot takes too long', async (context) => {
    await needGuest(context);
    const slow = await startGuest({ name: 'slow', script: 'echo there', bootMs: 1_500 });
    expect(await slow.done).toMatchObject({ exitCode: 0, stdout: 'there\n' });
    expect(slow.resets).toBeGreaterThanOrEqual(2);
    await slow.stop();
  });

  it('says what QEMU says when that does not start', async (context) => {
    await needGuest(context);
    const starting = startGuest({ script: 'true', devices: ['-device', 'no-such-device'] });
    await expect(starting).rejects.toThrow(/no-such-device/);
  });

  it('ends with the process that started it, even if that is killed', async (context) => {
    await needGuest(context);
    const program = join(repositoryRoot, 'dist/test/guest/programs/abandon.js');
    const starter = spawn(process.execPath, [program], { stdio: ['ignore', 'pipe', 'ignore'] });
    const [line] = (await once(starter.stdout.setEncoding('utf8'), 'data')) as [string];
    const { folder } = JSON.parse(line) as { folder: string };
    // QEMU, what limits its time, and the reaper of its folder.
    expect(processesOf(folder)).toHaveLength(3);
    expect(existsSync(folder)).toBe(true);
    starter.kill('SIGKILL');
    await nothingOf(folder);
  });
});
