// The IOMMU holds an NVMe controller to the memory that it was given; and a user of it that is
// killed leaves nothing behind. QEMU's controller reports success for what the IOMMU stopped, so
// that memory, disk and kernel log are looked at instead.

import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { needGuest } from './available.js';
import { nvme, throttle } from './devices.js';
import { startGuest } from './guest.js';

const LIMIT_MS = 240_000;

describe('an NVMe controller behind an IOMMU', () => {
  it(
    'touches what it was given, and nothing after its user was killed',
    async (context) => {
      await needGuest(context);
      await using guest = await startGuest({
        command: [
          ...['node', 'dist/test/guest/programs/nvme-isolation.js'],
          ...['0000:00:05.0', '0000:00:06.0'],
        ],
        disks: { plain: {}, slow: { throttle: 'brake' } },
        devices: [
          ...throttle('brake', { 'iops-read': 10 }),
          ...nvme({ id: 'a', serial: 'a', namespaces: ['plain'], more: { addr: '5.0' } }),
          ...nvme({ id: 'b', serial: 'b', namespaces: ['slow'], more: { addr: '6.0' } }),
        ],
        timeoutMs: LIMIT_MS,
      });
      const { exitCode, stderr, results, kernelLog } = await guest.done;
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });

      expect(results['prepared']).toBe(0);
      expect(results['statuses']).toEqual({ read: 0, kernel: 0, identify: 0, write: 0 });
      expect(results['memory is as it was']).toBe(true);
      expect(results['read back']).toBe(0);
      expect(results['secret bytes on the disk']).toBe(0);
      expect(results['what was given is reached']).toBe(true);
      const image = readFileSync(guest.disks['plain']!).subarray(0, 16384);
      expect(image.includes(Buffer.alloc(16, 0x53))).toBe(false);
      expect(image.subarray(0, 4096).every((byte) => byte === 0xd1)).toBe(true);
      const faults = results['faults'] as { ofTheDevice: boolean; memory: boolean; count: number };
      expect(faults).toMatchObject({ ofTheDevice: true, memory: true });
      expect(faults.count).toBeGreaterThan(0);
      expect(kernelLog).toMatch(/DMAR: \[DMA Write[^\]]*\] Request device \[00:05\.0\] fault addr/);

      const killed = results['killed'] as { inFlight: number; at: number };
      expect(killed.inFlight).toBeGreaterThan(20);
      expect(results['next']).toEqual({ at: killed.at, before: 0, after: 0, works: true });
    },
    LIMIT_MS + 10_000,
  );
});
