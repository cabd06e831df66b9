// Resets of an NVMe controller of QEMU in a guest, under a verified load of three threads: nothing
// may be lost, and nothing may touch a buffer that has completed
// (test/guest/programs/nvme-resets.ts).

import { nvme } from '../guest/devices.js';
import { type Guest, startGuest } from '../guest/guest.js';
import type { LoadResult } from '../guest/nvme-load.js';
import { check, type Soak, type SoakRun } from './harness.js';

const LIMIT_MS = 24 * 3_600_000;

class ResetsRun implements SoakRun {
  private readonly guest: Guest;
  private rounds = 0;

  constructor(guest: Guest) {
    this.guest = guest;
  }

  async round(): Promise<number> {
    this.guest.send('reset');
    const said = await this.guest.message();
    check(said === 'reset', `the guest says ${String(said)}`);
    this.rounds++;
    return 1;
  }

  async finish(): Promise<void> {
    try {
      this.guest.send('end');
      const { exitCode, stderr, results } = await this.guest.done;
      check(exitCode === 0, stderr);
      const loads = results['loads'] as LoadResult[];
      for (const { codes, wrong, touched } of loads) {
        const sound = wrong === 0 && touched === 0 && Object.keys(codes).join() === 'OK';
        check(sound, `a load saw ${JSON.stringify({ codes, wrong, touched })}`);
      }
      const operations = loads.reduce((sum, { reads, writes }) => sum + reads + writes, 0);
      const { resets } = results['counters'] as { resets: number };
      check(resets === this.rounds, `${resets} resets in ${this.rounds} rounds`);
      console.log(`nvme-resets: ${operations} operations verified`);
    } finally {
      await this.guest.stop();
    }
  }
}

export const nvmeResetsSoak: Soak = {
  full: 100,
  unit: 'resets',
  async start(): Promise<SoakRun> {
    const guest = await startGuest({
      command: ['node', 'dist/test/guest/programs/nvme-resets.js', '0000:00:05.0'],
      disks: { disk: {} },
      devices: nvme({ id: 'one', serial: 'one', namespaces: ['disk'], more: { addr: '5.0' } }),
      timeoutMs: LIMIT_MS,
    });
    try {
      check((await guest.message()) === 'running', 'the load does not begin');
      return new ResetsRun(guest);
    } catch (error) {
      await guest.stop();
      throw error;
    }
  },
};
