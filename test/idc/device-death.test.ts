// Ends of servers, clients and hubs while operations are in flight.

import { describe, expect, it } from 'vitest';
import { hubPath, startHub, startMember, type Actor } from './actors.js';
import { STUCK, newFile, startClient, startServer } from './device-actors.js';

describe('the death of a server', () => {
  it.each(['SIGKILL', 'SIGTERM'] as const)(
    '(%s) completes everything with DEVICE_GONE; loans stay readable',
    async (signal) => {
      const hub = hubPath();
      const hubActor = await startHub(hub);
      const server = await startServer(hub, 'disk0', newFile());
      const client = await startClient(hub, 'client', 'disk0');
      await client.run(async (stage) => {
        const { device } = stage;
        const buffer = device.memory.alloc(4096);
        buffer.u8.fill(0x77);
        await device.write(0, buffer);
        stage.notes['loan'] = await device.readLoan(0, 8);
      });
      server.stop();
      const told = client.run(async (stage) => {
        const { device } = stage;
        const buffer = device.memory.alloc(4096);
        const codeOf = (error: unknown): string => (error as { code: string }).code;
        const work = [
          ...Array.from({ length: 20 }, (_, i) => device.write(i * 8, buffer)),
          ...Array.from({ length: 20 }, (_, i) => device.read(i * 8, buffer)),
          ...Array.from({ length: 20 }, (_, i) => device.readLoan(i * 8, 8)),
          device.flush(),
        ];
        const outcomes = await Promise.allSettled<unknown>(work);
        const codes = outcomes.map((each) =>
          each.status === 'rejected' ? codeOf(each.reason) : '',
        );
        const later = await device.write(0, buffer).then(() => '', codeOf);
        const loan = stage.notes['loan'] as { u8: Uint8Array; release(): void };
        const readable = loan.u8.every((byte) => byte === 0x77);
        loan.release();
        stage.notes['loan'] = null;
        let queue = '';
        try {
          device.queue({ depth: 1 });
        } catch (error) {
          queue = codeOf(error);
        }
        await device.close();
        return { codes: [...new Set(codes)], later, readable, queue, left: device.memory.taken };
      });
      await client.run((stage) => stage.sleep(50));
      server.goOn();
      await server.kill(signal);
      const { codes, later, readable, queue } = await told;
      // With SIGTERM it may have done some before.
      expect(codes.filter((code) => code !== '')).toEqual(
        codes.length === 1 && codes[0] === '' ? [] : ['DEVICE_GONE'],
      );
      expect({ later, readable, queue }).toEqual({
        later: 'DEVICE_GONE',
        readable: true,
        queue: 'DEVICE_GONE',
      });
      // Nothing of the dead one is held any more.
      await client.run((stage) => stage.collect());
      await hubActor.run((stage) =>
        stage.until('slot', () => stage.hub.list().every(({ state }) => state === 'member')),
      );
    },
  );

  it('ends threads that are attached, too, also those that block', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', STUCK);
    const client = await startClient(hub, 'client', 'disk0');
    const done = client.run((stage) => {
      const { device } = stage;
      const queue = device.queue({ depth: 4 });
      const buffer = device.memory.alloc(4096);
      for (let i = 0; i < 4; i++) {
        const at = (queue.tail & queue.mask) * 8;
        queue.reserve(1);
        const record = [3, i, 8, 0, i * 8, 0, buffer.address % 2 ** 32];
        queue.sq.set([...record, Math.floor(buffer.address / 2 ** 32)], at);
      }
      queue.submit();
      // Without a turn of the event loop.
      const statuses: number[] = [];
      while (statuses.length < 4) {
        const count = queue.park(1_000_000);
        for (let i = 0; i < count; i++) statuses.push(queue.cq[i * 4 + 1]!);
      }
      return statuses;
    });
    await server.run((stage) => stage.until('requests', () => stage.server.stats().inFlight === 4));
    await server.kill();
    expect(await done).toEqual([10, 10, 10, 10]);
  });
});

describe('?reconnect=1', () => {
  /**
   * Writes and reads over and over, each block with its own count; gives how often it was wrong.
   */
  async function startWork(client: Actor): Promise<void> {
    await client.run((stage) => {
      const { device } = stage;
      const state = { rounds: 0, wrong: 0, stop: false, failed: '' };
      stage.notes['state'] = state;
      const lane = async (block: number): Promise<void> => {
        const buffer = device.memory.alloc(4096);
        for (let round = 1; !state.stop; round++) {
          buffer.u32.fill(Math.imul(block + 1, 7919) + round);
          await device.write(block * 8, buffer);
          if (round % 3 === 0) await device.flush();
          buffer.u32.fill(0);
          await device.read(block * 8, buffer);
          const wanted = (Math.imul(block + 1, 7919) + round) >>> 0;
          if (!buffer.u32.every((word) => word === wanted)) state.wrong++;
          const loan = await device.readLoan(block * 8, 8);
          if (new Uint32Array(loan.u8.slice().buffer)[9] !== wanted) state.wrong++;
          loan.release();
          state.rounds++;
        }
      };
      stage.notes['work'] = Promise.all(Array.from({ length: 24 }, (_, i) => lane(i))).catch(
        (error: unknown) => (state.failed = String(error)),
      );
    });
  }

  const rounds = (client: Actor): Promise<number> =>
    client.run((stage) => (stage.notes['state'] as { rounds: number }).rounds);

  async function more(client: Actor, count: number): Promise<void> {
    const before = await rounds(client);
    await client.run((stage, from) => {
      const state = stage.notes['state'] as { rounds: number; failed: string };
      return stage.until('rounds', () => state.rounds > from || state.failed !== '', 30_000);
    }, before + count);
  }

  it.each(['SIGKILL', 'SIGTERM'] as const)(
    'goes on with the next server of the name (%s), in flight or not',
    async (signal) => {
      const hub = hubPath();
      await startHub(hub);
      const file = newFile();
      let server = await startServer(hub, 'disk0', file);
      const client = await startClient(hub, 'client', 'disk0', '&reconnect=30s');
      await startWork(client);
      for (let life = 0; life < 3; life++) {
        await more(client, 50);
        if (signal === 'SIGTERM') {
          await server.run(async (stage) => {
            await stage.server.close();
            await stage.device.close();
            stage.domain.close();
          });
        }
        await server.kill(signal);
        server = await startServer(hub, 'disk0', file);
      }
      await more(client, 50);
      const state = await client.run(async (stage) => {
        const found = stage.notes['state'] as { wrong: number; stop: boolean; failed: string };
        found.stop = true;
        await stage.notes['work'];
        await stage.device.close();
        return { wrong: found.wrong, failed: found.failed };
      });
      expect(state).toEqual({ wrong: 0, failed: '' });
    },
  );

  it('gives up when nobody comes, when another device comes, and where nothing lasts', async () => {
    const hub = hubPath();
    await startHub(hub);
    const code = async (client: Actor): Promise<string> =>
      client.run(async (stage) => {
        try {
          for (;;) await stage.device.flush();
        } catch (error) {
          return (error as { code: string }).code;
        }
      });
    const first = await startServer(hub, 'disk0', newFile());
    const impatient = await startClient(hub, 'impatient', 'disk0', '&reconnect=300ms');
    let ends = code(impatient);
    await first.kill();
    expect(await ends).toBe('DEVICE_GONE');

    const second = await startServer(hub, 'disk1', newFile());
    const client = await startClient(hub, 'client', 'disk1', '&reconnect=30s');
    ends = code(client);
    await second.kill();
    await startServer(hub, 'disk1', newFile().replace('8MiB', '9MiB'));
    expect(await ends).toBe('DEVICE_GONE');

    const third = await startServer(hub, 'disk2', 'ram:8MiB');
    const third1 = await startClient(hub, 'other', 'disk2', '&reconnect=30s');
    ends = code(third1);
    await third.kill();
    expect(await ends).toBe('DEVICE_GONE');
  });
});

describe('the death of a client', () => {
  it('frees all that it had, once the device has let go of it', async () => {
    const hub = hubPath();
    const hubActor = await startHub(hub);
    const server = await startServer(hub, 'disk0', 'null:1GiB?fault.delayUs=300000');
    const before = await server.run((stage) => stage.domain.memory.taken);
    const client = await startClient(hub, 'client', 'disk0');
    await client.run(async (stage) => {
      const { device } = stage;
      stage.notes['loan'] = await device.readLoan(0, 8);
      const buffer = device.memory.alloc(65536);
      for (let i = 0; i < 100; i++) {
        device.write(i * 128, buffer).catch(() => {});
        device.read(i * 128, buffer).catch(() => {});
      }
    });
    await server.run((stage) =>
      stage.until('requests', () => stage.server.stats().inFlight >= 100),
    );
    const slot = await client.run((stage) => stage.idc.currentDomain()!.slot);
    await client.kill();
    const mapped = await server.run(async (stage, at) => {
      await stage.until('death', () => !stage.domain.links.has(at));
      // The device may still read it.
      const { inFlight } = stage.server.stats();
      const held = stage
        .addressSpace()
        .list()
        .some(({ address }) => {
          return Math.floor(address / 2 ** 36) === at;
        });
      return inFlight === 0 || held;
    }, slot);
    expect(mapped).toBe(true);
    await server.run(async (stage, taken) => {
      await stage.until('end', () => stage.server.stats().clients.length === 0);
      await stage.until('memory', () => stage.domain.memory.taken <= taken);
    }, before);
    // Its slot is free once nobody has a view of its memory.
    const isFree = () =>
      hubActor.run((stage) => stage.hub.list().every(({ state }) => state === 'member'));
    await expect
      .poll(async () => (await server.run((stage) => stage.collect()), isFree()), {
        timeout: 10_000,
      })
      .toBe(true);
    // And it serves on.
    const next = await startClient(hub, 'next', 'disk0');
    await next.run((stage) => stage.device.flush());
  });

  it('between its question for statistics and the answer leaves nothing', async () => {
    const hub = hubPath();
    const hubActor = await startHub(hub);
    const server = await startServer(hub, 'disk0', 'null:1GiB');
    const asker = await startMember(hub, 'asker');
    await asker.run(async (stage) => {
      stage.channels['stats'] = await stage.domain.connect('disk0', 'stats');
    });
    server.stop();
    await asker.run((stage) => {
      stage.channels['stats']!.request(stage.domain.alloc(512)).catch(() => {});
      return stage.sleep(0);
    });
    await asker.kill();
    server.goOn();
    await server.run((stage) =>
      stage.until('released', () => stage.domain.loans().held.length === 0),
    );
    await server.run((stage) => stage.collect());
    await hubActor.run((stage) =>
      stage.until('slot', () => stage.hub.list().every(({ state }) => state === 'member')),
    );
  });

  it('does not disturb the others', async () => {
    const hub = hubPath();
    await startHub(hub);
    await startServer(hub, 'disk0', newFile());
    const steady = await startClient(hub, 'steady', 'disk0');
    const work = steady.run(async (stage) => {
      const { device } = stage;
      const buffer = device.memory.alloc(4096);
      stage.notes['stop'] = false;
      let count = 0;
      let wrong = 0;
      while (stage.notes['stop'] === false) {
        buffer.u32.fill(++count);
        await device.write(8, buffer);
        buffer.u32.fill(0);
        await device.read(8, buffer);
        if (buffer.u32[1023] !== count) wrong++;
      }
      return { wrong, some: count > 10 };
    });
    for (let i = 0; i < 3; i++) {
      const client = await startClient(hub, `victim${i}`, 'disk0');
      await client.run((stage) => {
        const buffer = stage.device.memory.alloc(65536);
        const lane = async (): Promise<void> => {
          for (;;) await stage.device.write(128, buffer);
        };
        for (let each = 0; each < 64; each++) void lane();
      });
      await client.run((stage) => stage.sleep(20));
      await client.kill();
    }
    await steady.run((stage) => void (stage.notes['stop'] = true));
    expect(await work).toEqual({ wrong: 0, some: true });
  });
});

describe('the death of the hub', () => {
  it('is not noticed by who has the device open', async () => {
    const hub = hubPath();
    const hubActor = await startHub(hub);
    await startServer(hub, 'disk0', newFile());
    const client = await startClient(hub, 'client', 'disk0');
    await hubActor.kill();
    const read = await client.run(async (stage) => {
      const { device } = stage;
      const buffer = device.memory.alloc(4096);
      for (let i = 1; i <= 200; i++) {
        buffer.u32.fill(i);
        await device.write(i * 8, buffer);
        buffer.u32.fill(0);
        await device.read(i * 8, buffer);
        if (buffer.u32[5] !== i) return -i;
      }
      return buffer.u32[0];
    });
    expect(read).toBe(200);
  });
});
