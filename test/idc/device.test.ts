// A device served to other processes: no copies, data of several clients, limits, turns,
// statistics.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import type { ClientStats } from '../../lib/idc/index.js';
import { hubPath, startHub, type Actor } from './actors.js';
import { startClient, startServer } from './device-actors.js';

const folders: string[] = [];

afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});

function newFile(): string {
  const folder = mkdtempSync(join(tmpdir(), 'penstock-served-'));
  folders.push(folder);
  return `file:${join(folder, 'disk')}?create=8MiB`;
}

async function clientsOf(server: Actor): Promise<readonly ClientStats[]> {
  return server.run((stage) => stage.server.stats().clients);
}

describe('copies', () => {
  it.each(['null:8MiB', 'FILE', 'FILE&direct=1'])(
    '%s: none on WRITE and READ_LOAN',
    async (uri) => {
      const hub = hubPath();
      await startHub(hub);
      const device = uri.replace('FILE', newFile());
      const server = await startServer(hub, 'disk0', device);
      const copiesThere = (): Promise<number> => server.run((stage) => stage.server.stats().copies);
      const before = await copiesThere();
      const client = await startClient(hub, 'client', 'disk0');
      const found = await client.run(async (stage, keepsData) => {
        const { device: disk } = stage;
        const copies = (): number => stage.statusWords()[2]!;
        const first = copies();
        const COUNT = 100;
        const buffers = Array.from({ length: COUNT }, () => disk.memory.alloc(4096));
        const step = 4096 / disk.info.blockSize;
        buffers.forEach((buffer, i) => buffer.u32.fill(i + 1));
        await Promise.all(buffers.map((buffer, i) => disk.write(i * step, buffer)));
        let wrong = 0;
        const loans = await Promise.all(buffers.map((_, i) => disk.readLoan(i * step, step)));
        loans.forEach((loan, i) => {
          if (keepsData && !loan.u8.every((byte, at) => byte === (at % 4 === 0 ? i + 1 : 0)))
            wrong++;
          loan.release();
        });
        const none = copies() - first;
        // What a plain READ costs is one each, and counted.
        await Promise.all(buffers.map((buffer, i) => disk.read(i * step, buffer)));
        return { wrong, none, reads: copies() - first };
      }, uri !== 'null:8MiB');
      expect(found).toEqual({ wrong: 0, none: 0, reads: 100 });
      expect(await copiesThere()).toBe(before);
    },
  );
});

describe('several clients', () => {
  it('see one device, and each its own data in its buffers', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', newFile());
    const clients = await Promise.all(
      [0, 1, 2].map((me) => startClient(hub, `client${me}`, 'disk0')),
    );
    const wrong = await Promise.all(
      clients.map((client, me) =>
        client.run(async (stage, own) => {
          const { device } = stage;
          let bad = 0;
          const word = (lba: number, round: number): number =>
            Math.imul(lba * 3 + own + 1, 2654435761) + round;
          for (let round = 0; round < 40; round++) {
            const lbas = Array.from({ length: 32 }, (_, i) => (i * 3 + own) * 8);
            await Promise.all(
              lbas.map(async (lba) => {
                const buffer = device.memory.alloc(4096);
                buffer.u32.fill(word(lba, round));
                await device.write(lba, buffer);
                buffer.u32.fill(0);
                await device.read(lba, buffer);
                if (!buffer.u32.every((one) => one === word(lba, round) >>> 0)) bad++;
                buffer.free();
                const loan = await device.readLoan(lba, 8);
                const words = new Uint32Array(loan.u8.slice().buffer);
                if (!words.every((one) => one === word(lba, round) >>> 0)) bad++;
                loan.release();
              }),
            );
          }
          return bad;
        }, me),
      ),
    );
    expect(wrong).toEqual([0, 0, 0]);
    // The first sees what the others wrote.
    const seen = await clients[0]!.run(async (stage) => {
      const buffer = stage.device.memory.alloc(4096);
      await stage.device.read(8, buffer);
      return buffer.u32[7];
    });
    expect(seen).toBe((Math.imul(8 * 3 + 1 + 1, 2654435761) + 39) >>> 0);
    const stats = await clientsOf(server);
    expect(stats.map(({ name }) => name).sort()).toEqual(['client0', 'client1', 'client2']);
    for (const { writes, reads, bytesWritten, errors, inFlight, lent } of stats) {
      expect(writes).toBe(40 * 32);
      expect(reads).toBeGreaterThanOrEqual(2 * 40 * 32);
      expect(bytesWritten).toBe(40 * 32 * 4096);
      expect({ errors, inFlight, lent }).toEqual({ errors: 0, inFlight: 0, lent: 0 });
    }
  });

  it('have turns: none gets more than its share of a device that is busy', async () => {
    const hub = hubPath();
    await startHub(hub);
    // Slower than any client, so that each has requests waiting at all times.
    const slow = 'null:1GiB?fault.delayUs=1000';
    const server = await startServer(hub, 'disk0', slow, { depth: 16 });
    const depths = [64, 64, 256, 256, 1];
    const clients = await Promise.all(
      depths.map((_, me) => startClient(hub, `client${me}`, 'disk0')),
    );
    for (const [me, client] of clients.entries()) {
      void client
        .run(async (stage, depth) => {
          const buffer = stage.device.memory.alloc(4096);
          const lane = async (): Promise<void> => {
            for (;;) await stage.device.write(0, buffer);
          };
          await Promise.all(Array.from({ length: depth }, lane));
        }, depths[me]!)
        .catch(() => undefined); // ends with its process
    }
    const writes = async (): Promise<number[]> => {
      const stats = await clientsOf(server);
      return depths.map((_, me) => stats.find(({ name }) => name === `client${me}`)?.writes ?? 0);
    };
    for (;;) {
      const now = await writes();
      if (now.every((count) => count > 10)) break;
    }
    const before = await writes();
    for (;;) {
      const now = await writes();
      if (now.every((count, me) => count - before[me]! > (me === 4 ? 10 : 1000))) break;
    }
    const after = await writes();
    const done = after.map((count, me) => count - before[me]!);
    // Those that always have requests waiting get the same.
    const deep = done.slice(0, 4);
    expect(Math.max(...deep) / Math.min(...deep)).toBeLessThanOrEqual(1.2);
    // Who has one at a time waits for its turn, not for what the others have waiting.
    expect(deep[3]! / done[4]!).toBeLessThan(100);
  });
});

describe('limits', () => {
  it.each([
    ['operations', { limitIops: 2000 }, 2000, 4096],
    ['bytes', { limitBytes: 2000 * 65536 }, 2000, 65536],
  ])('of %s a second hold for each client', async (_what, options, most, bytes) => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', 'null:1GiB', options);
    const clients = await Promise.all([0, 1].map((me) => startClient(hub, `c${me}`, 'disk0')));
    const rates = await Promise.all(
      clients.map((client) =>
        client.run(async (stage, size) => {
          const buffer = stage.device.memory.alloc(size);
          let count = 0;
          const start = performance.now();
          const lane = async (): Promise<void> => {
            while (performance.now() - start < 1000) {
              await stage.device.write(0, buffer);
              count++;
            }
          };
          await Promise.all(Array.from({ length: 64 }, lane));
          return (count / (performance.now() - start)) * 1000;
        }, bytes),
      ),
    );
    for (const rate of rates) {
      expect(rate).toBeLessThanOrEqual(most * 1.1);
      expect(rate).toBeGreaterThan(most * 0.2);
    }
    for (const { throttled } of await clientsOf(server)) expect(throttled).toBeGreaterThan(0);
  });

  it('of memory for reads: who has it all waits, or gets NO_MEMORY for a loan', async () => {
    const hub = hubPath();
    await startHub(hub);
    const served = newFile();
    const server = await startServer(hub, 'disk0', served, { lentBytes: 64 * 1024 });
    const client = await startClient(hub, 'client', 'disk0');
    const codes = await client.run(async (stage) => {
      const { device } = stage;
      const codeOf = (error: unknown): string => (error as { code: string }).code;
      const buffers = Array.from({ length: 64 }, () => device.memory.alloc(16384));
      const reads = await Promise.allSettled(buffers.map((buffer) => device.read(0, buffer)));
      const loans = await Promise.allSettled(buffers.map(() => device.readLoan(0, 32)));
      const got = loans.filter((loan) => loan.status === 'fulfilled');
      const refused = loans.flatMap((loan) =>
        loan.status === 'rejected' ? [codeOf(loan.reason)] : [],
      );
      for (const { value } of got) value.release();
      const again = await device.readLoan(0, 32);
      again.release();
      return {
        reads: reads.every(({ status }) => status === 'fulfilled'),
        got: got.length,
        refused: [...new Set(refused)],
      };
    });
    expect(codes).toEqual({ reads: true, got: 4, refused: ['NO_MEMORY'] });
    const [stats] = await clientsOf(server);
    expect(stats!.deferred).toBeGreaterThan(0);
    expect(stats!.lentBytes).toBeLessThanOrEqual(64 * 1024);
  });

  it('of queues, of each client and of the device as it was opened', async () => {
    const hub = hubPath();
    await startHub(hub);
    await startServer(hub, 'disk0', 'null:1GiB', { queues: 4 });
    const refused = startClient(hub, 'greedy', 'disk0', '&queues=5');
    await expect(refused).rejects.toMatchObject({ code: 'NO_QUEUES' });
    const client = await startClient(hub, 'client', 'disk0', '&queues=2');
    const code = await client.run((stage) => {
      const { device } = stage;
      device.queue({ depth: 1 });
      device.queue({ depth: 1 });
      try {
        device.queue({ depth: 1 });
        return '';
      } catch (error) {
        return (error as { code: string }).code;
      }
    });
    expect(code).toBe('NO_QUEUES');
  });
});

describe('a server', () => {
  it('sleeps when nobody wants anything, and tells its statistics to who asks', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', 'null:1GiB');
    const client = await startClient(hub, 'client', 'disk0');
    await client.run((stage) => stage.device.flush());
    const asked = await client.run(async (stage) => {
      const domain = stage.idc.currentDomain()!;
      const channel = await domain.connect('disk0', 'stats');
      const answer = await channel.request(domain.alloc(512));
      const text = Buffer.from(answer.u8 as unknown as Uint8Array).toString();
      answer.release();
      channel.close();
      return JSON.parse(text) as { schema: string; clients: { name: string; others: number }[] };
    });
    expect(asked).toMatchObject({
      schema: 'penstock.device-stats/1',
      name: 'disk0',
      clients: [{ name: 'client', others: 1 }],
    });
    await server.run(async (stage) => {
      const { sleeps } = stage.server.stats();
      await stage.until('sleep', () => stage.server.stats().sleeps > 0);
      // Asleep: no round of the loop passes.
      for (;;) {
        const { rounds } = stage.server.stats();
        await stage.sleep(50);
        if (stage.server.stats().rounds === rounds) return sleeps;
      }
    });
  });

  it('tells its clients of another size of the device', async () => {
    const hub = hubPath();
    await startHub(hub);
    const file = newFile();
    const path = file.slice(5).split('?')[0]!;
    const server = await startServer(hub, 'disk0', file);
    const client = await startClient(hub, 'client', 'disk0');
    const told = client.run(async (stage) => {
      const { device } = stage;
      const before = device.info.blocks;
      const after = await new Promise<number>((resolve) => {
        device.onChange(({ blocks }) => resolve(blocks));
      });
      const buffer = device.memory.alloc(512);
      await device.write(after - 1, buffer);
      return [before, after];
    });
    await client.run(() => undefined); // it listens by now
    await server.run(async (stage, at) => {
      const fd = stage.native.fileOpen(at, 2, 0);
      stage.native.fileTruncate(fd, 16 * 2 ** 20);
      stage.native.fileClose(fd);
      await stage.device.refresh();
    }, path);
    expect(await told).toEqual([16384, 32768]);
  });

  it('refuses devices that reach no memory of other domains', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', 'null:1GiB');
    const code = await server.run((stage) => {
      const { device } = stage;
      const backend = Object.assign(Object.create(device.backend) as object, {
        memoryKind: 'device',
      });
      const fake = { backend, uri: 'nvme+vfio-user:/x/1' } as unknown as typeof device;
      try {
        new stage.idc.DeviceServer(stage.domain, fake);
        return '';
      } catch (error) {
        return (error as { code: string }).code;
      }
    });
    expect(code).toBe('NOT_SERVABLE');
  });
});

describe('opening', () => {
  it('says what is wrong with the URI, the hub or the name', async () => {
    const hub = hubPath();
    const code = (served: string, keys = ''): Promise<unknown> =>
      startClient(hub, 'x', served, keys).then(
        () => '',
        (error: unknown) => (error as { code: string }).code,
      );
    expect(await code('disk0')).toBe('NO_HUB');
    await startHub(hub);
    expect(await code('a b')).toBe('BAD_URI');
    const server = await startServer(hub, 'disk0', 'null:1GiB');
    expect(await code('disk0', '&queues=0')).toBe('BAD_OPTION');
    expect(await code('disk0', '&entries=100')).toBe('BAD_OPTION');
    expect(await code('disk0', '&reconnect=soon')).toBe('BAD_DURATION');
    await server.run(async (stage) => stage.server.close());
    expect(await code('disk0')).toBe('NO_SUCH_PORT');
  });
});
