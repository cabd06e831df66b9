// Ends that come at a bad moment: a device closed while its server is away, a server that is cut
// off or lets go of queues while it has operations, loans that outlive the queue they came by.

import { describe, expect, it } from 'vitest';
import { built } from '../fault/child.js';
import { Actor, hubPath, startHub, startMember } from './actors.js';
import { STUCK, newFile, startClient, startServer } from './device-actors.js';

/** Starts a thread of a client's; what it posts is kept in `notes.told`. */
async function startThread(client: Actor, body: string): Promise<void> {
  const code = `
    const { parentPort, workerData } = require('node:worker_threads');
    (async () => {
      const { attach } = await import(workerData.open);
      const device = await attach(workerData.handle);
      const outcome = (work) => work.then(() => 'OK', (error) => error.code);
      ${body}
    })();
  `;
  await client.run(
    (stage, text, open) => {
      const told: unknown[] = [];
      const shared = new SharedArrayBuffer(64);
      const workerData = { handle: stage.device.handle(), open, shared };
      const worker = new stage.Worker(text, { eval: true, execArgv: [], workerData });
      worker.on('message', (message) => told.push(message));
      worker.on('error', (error) => told.push(String(error)));
      Object.assign(stage.notes, { told, worker, shared });
    },
    code,
    built('open'),
  );
}

const told = (client: Actor): Promise<unknown[]> =>
  client.run((stage) => stage.notes['told'] as unknown[]);

async function untilTold(client: Actor, count: number): Promise<unknown[]> {
  await client.run(async (stage, wanted) => {
    const list = stage.notes['told'] as unknown[];
    await stage.until('word of the thread', () => list.length >= wanted);
  }, count);
  return told(client);
}

const untilInFlight = (server: Actor, count: number): Promise<void> =>
  server.run((stage, wanted) => {
    return stage.until('requests', () => stage.server.stats().inFlight === wanted);
  }, count);

/** What a server says of its device. */
const factsOf = (server: Actor): Promise<string> =>
  server.run((stage) =>
    JSON.stringify({ version: 1, scheme: 'file', info: stage.device.nativeInfo }),
  );

/** Ends the link with a client, as if it had misbehaved: the server's process lives on. */
const cutLink = (server: Actor, name: string): Promise<void> =>
  server.run(async (stage, peer) => {
    const link = await stage.domain.linkTo(peer);
    link.end(Object.assign(new Error('cut off'), { code: 'PEER_MISBEHAVED' }) as never);
  }, name);

describe('closing a device', () => {
  it('while its server is away ends the wait for another one', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', newFile());
    const facts = await factsOf(server);
    const client = await startClient(hub, 'client', 'disk0', '&reconnect=30s');
    await server.run((stage) => stage.server.close());
    await client.run((stage) => stage.sleep(100));
    await server.kill();
    await client.run(async (stage) => {
      await stage.until('death', () => stage.idc.currentDomain()!.links.size === 0);
      // By now it waits for a link, no longer for an answer.
      await stage.sleep(200);
      await stage.device.close();
    });
    // It answers from its first moment on.
    const next = await Actor.start();
    await next.run(
      async (stage, at, said) => {
        stage.domain = await stage.idc.joinDomain(at, { name: 'disk0' });
        stage.domain.listenRaw('device', (incoming) => {
          const { kind } = JSON.parse(incoming.meta) as { kind: string };
          ((stage.notes['asked'] ??= []) as string[]).push(kind);
          incoming.accept(kind === 'info' ? said : '');
        });
      },
      hub,
      facts,
    );
    await client.run((stage) => stage.sleep(300));
    expect(await next.run((stage) => stage.notes['asked'] ?? [])).toEqual([]);
  });

  it('leaves what a thread has in flight to the server, which lives', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', STUCK);
    const client = await startClient(hub, 'client', 'disk0');
    await startThread(
      client,
      `const queue = device.queue({ depth: 4 });
       const { address } = device.memory.alloc(4096);
       queue.reserve(1);
       queue.sq.set([3, 7, 8, 0, 0, 0, address % 2 ** 32, Math.floor(address / 2 ** 32)]);
       queue.submit();
       while (queue.park(50_000) === 0);
       parentPort.postMessage(queue.cq[1] & 0xff);
       await device.close();
       parentPort.postMessage('closed');`,
    );
    await untilInFlight(server, 1);
    await client.run(async (stage) => {
      await stage.device.close();
      await stage.sleep(300);
    });
    // The server's device may still read the buffer.
    expect(await told(client)).toEqual([]);
    await server.kill();
    expect(await untilTold(client, 2)).toEqual([10, 'closed']);
  });

  it('completes what a thread has in flight once the server has done it', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', 'null:1GiB?fault.delayUs=400000');
    const client = await startClient(hub, 'client', 'disk0');
    await startThread(
      client,
      `const buffer = device.memory.alloc(4096);
       const work = [0, 8, 16].map((block) => outcome(device.write(block, buffer)));
       work.push(outcome(device.read(24, device.memory.alloc(4096))));
       parentPort.postMessage(await Promise.all(work));
       await device.close();
       parentPort.postMessage('closed');`,
    );
    await untilInFlight(server, 4);
    await client.run((stage) => stage.device.close());
    expect(await untilTold(client, 2)).toEqual([Array(4).fill('DEVICE_GONE'), 'closed']);
    await server.run((stage) =>
      stage.until('end', () => stage.server.stats().clients.every(({ queues }) => queues === 0)),
    );
  });

  it('leaves a channel alone that a thread, blocked for long, has not let go of', async () => {
    const hub = hubPath();
    await startHub(hub);
    await startServer(hub, 'disk0', newFile());
    const client = await startClient(hub, 'client', 'disk0', '&queues=1');
    await startThread(
      client,
      `const queue = device.queue({ depth: 4, split: false });
       parentPort.postMessage('here');
       const word = new Int32Array(workerData.shared);
       Atomics.wait(word, 0, 0);
       for (let i = 0; i < 1000; i++) queue.driver.arm();
       await queue.close();
       await device.close();
       parentPort.postMessage('closed');`,
    );
    await untilTold(client, 1);
    const scribbled = await client.run(async (stage) => {
      const { memory } = stage.idc.currentDomain()!;
      const before = memory.taken;
      await stage.device.close();
      await stage.sleep(200);
      // The half is free if memory was given back; then these have it.
      const bytes = 256 + 2048 * 32;
      const buffers = Array.from({ length: 64 }, () => memory.alloc(bytes));
      for (const buffer of buffers) buffer.u8.fill(0x5a);
      const word = new Int32Array(stage.notes['shared'] as SharedArrayBuffer);
      Atomics.store(word, 0, 1);
      Atomics.notify(word, 0);
      const list = stage.notes['told'] as unknown[];
      await stage.until('the end of the thread', () => list.length === 2);
      const wrong = buffers.filter((buffer) => !buffer.u8.every((byte) => byte === 0x5a)).length;
      for (const buffer of buffers) buffer.free();
      // Now it goes.
      await stage.until('memory', () => memory.taken < before);
      return wrong;
    });
    expect(scribbled).toBe(0);
  });
});

describe('a server that is cut off', () => {
  it('keeps what it has in flight until it is dead; then the next one gets it', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', 'null:1GiB?fault.stuck=1');
    const client = await startClient(hub, 'client', 'disk0', '&reconnect=30s');
    await client.run((stage) => {
      const outcomes: string[] = [];
      stage.notes['outcomes'] = outcomes;
      const buffer = stage.device.memory.alloc(4096);
      stage.device.write(0, buffer).then(
        () => outcomes.push('OK'),
        (error: unknown) => outcomes.push((error as { code: string }).code),
      );
    });
    await untilInFlight(server, 1);
    await cutLink(server, 'client');
    await client.run((stage) => stage.sleep(300));
    const outcomes = (): Promise<string[]> =>
      client.run((stage) => stage.notes['outcomes'] as string[]);
    expect(await outcomes()).toEqual([]);
    // Who comes meanwhile waits, too.
    await client.run((stage) => stage.device.queue({ depth: 1 }).close());
    await server.kill();
    await startServer(hub, 'disk0', 'null:1GiB');
    await client.run(async (stage) => {
      const list = stage.notes['outcomes'] as string[];
      await stage.until('outcome', () => list.length > 0);
    });
    // What null keeps does not last, and says so.
    expect(await outcomes()).toEqual(['DEVICE_GONE']);
  });

  it('is gone on from when it has let go, and is dead', async () => {
    const hub = hubPath();
    await startHub(hub);
    const file = newFile();
    const server = await startServer(hub, 'disk0', `${file}&fault.delayUs=300000`);
    const client = await startClient(hub, 'client', 'disk0', '&reconnect=30s');
    await startThread(
      client,
      `const buffer = device.memory.alloc(4096);
       buffer.u32.fill(7);
       parentPort.postMessage(await outcome(device.write(0, buffer)));
       parentPort.postMessage(await outcome(device.flush()));
       await device.close();`,
    );
    await untilInFlight(server, 1);
    await cutLink(server, 'client');
    await untilInFlight(server, 0);
    await server.kill();
    await startServer(hub, 'disk0', file);
    expect(await untilTold(client, 2)).toEqual(['OK', 'OK']);
    const word = await client.run(async (stage) => {
      const buffer = stage.device.memory.alloc(4096);
      await stage.device.read(0, buffer);
      return buffer.u32[9];
    });
    expect(word).toBe(7);
  });

  it('in the moment in which it let a client in is no server', async () => {
    const hub = hubPath();
    await startHub(hub);
    const first = await startServer(hub, 'real', newFile());
    const facts = await factsOf(first);
    const codes: string[] = [];
    for (let life = 0; life < 4; life++) {
      const name = `disk${life}`;
      const raw = await startMember(hub, name);
      await raw.run((stage, said) => {
        let queues = 0;
        stage.domain.listenRaw('device', (incoming) => {
          const { kind } = JSON.parse(incoming.meta) as { kind: string };
          incoming.accept(kind === 'info' ? said : '');
          if (kind === 'queue' && ++queues === 4) process.kill(process.pid, 'SIGKILL');
        });
      }, facts);
      const client = await startMember(hub, `client${life}`);
      const code = await client.run(async (stage, uri) => {
        try {
          stage.device = await stage.open(uri);
        } catch (error) {
          return (error as { code: string }).code;
        }
        return '';
      }, `idc:${hub}/${name}?queues=4`);
      codes.push(code);
      if (code !== '') continue;
      // It came just before the end, of which a thread hears, too.
      await startThread(client, 'parentPort.postMessage(await outcome(device.flush()));');
      codes.push(...((await untilTold(client, 1)) as string[]));
    }
    for (const code of codes) expect(['', 'PEER_GONE', 'DEVICE_GONE']).toContain(code);
  });
});

describe('a server that ends queues in order', () => {
  it('leaves loans alone until they are released', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', newFile());
    const before = await server.run((stage) => stage.domain.memory.taken);
    const client = await startClient(hub, 'client', 'disk0');
    await client.run(async (stage) => {
      const buffer = stage.device.memory.alloc(4096);
      buffer.u8.fill(0x77);
      await stage.device.write(0, buffer);
      stage.notes['loan'] = await stage.device.readLoan(0, 8);
    });
    await server.run((stage) => stage.server.close());
    const intact = await client.run(async (stage) => {
      const { device } = stage;
      const code = await device.flush().then(
        () => '',
        (error: unknown) => (error as { code: string }).code,
      );
      await stage.sleep(300);
      const { u8 } = stage.notes['loan'] as { u8: Uint8Array };
      return { code, intact: u8.every((byte) => byte === 0x77) };
    });
    expect(intact).toEqual({ code: 'DEVICE_GONE', intact: true });
    const held = await server.run((stage) => stage.domain.memory.taken);
    expect(held).toBeGreaterThan(before);
    await client.run((stage) => {
      (stage.notes['loan'] as { release(): void }).release();
    });
    await server.run(async (stage, taken) => {
      await stage.until('loan', () => stage.domain.memory.taken < taken);
    }, held);
  });

  it('and serves again gets no loans back that it gave out before', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', newFile());
    const client = await startClient(hub, 'client', 'disk0', '&reconnect=30s');
    await client.run(async (stage) => {
      const { device } = stage;
      stage.notes['loans'] = [await device.readLoan(0, 8), await device.readLoan(8, 8)];
    });
    await server.run(async (stage) => {
      await stage.server.close();
      stage.server = new stage.idc.DeviceServer(stage.domain, stage.device);
    });
    const work = await client.run(async (stage) => {
      const { device } = stage;
      await device.flush();
      const loan = await device.readLoan(16, 8);
      for (const each of stage.notes['loans'] as { release(): void }[]) each.release();
      loan.release();
      const buffer = device.memory.alloc(4096);
      for (let i = 0; i < 40; i++) {
        await device.write(i * 8, buffer);
        (await device.readLoan(i * 8, 8)).release();
      }
      return device.flush().then(() => 'OK');
    });
    expect(work).toBe('OK');
    // The first queue goes on: the server has ended none.
    const { clients } = await server.run((stage) => stage.server.stats());
    expect(clients.map(({ reads, writes }) => ({ reads, writes }))).toEqual([
      { reads: 41, writes: 40 },
    ]);
  });

  it.each(['', '&reconnect=30s'])(
    'of which only a thread knows ends or goes on, as it was opened (%s)',
    async (keys) => {
      const hub = hubPath();
      await startHub(hub);
      const server = await startServer(hub, 'disk0', newFile());
      const client = await startClient(hub, 'client', 'disk0', keys);
      await startThread(
        client,
        `parentPort.once('message', async () => {
           const buffer = device.memory.alloc(4096);
           parentPort.postMessage(await outcome(device.write(0, buffer)));
           await device.close();
           parentPort.close();
         });
         await device.flush();
         parentPort.postMessage('here');`,
      );
      await untilTold(client, 1);
      // The queue that has taken a request.
      await server.run(async (stage) => {
        interface Inside {
          loop: {
            sessions: ({ channel: { taken: number } } | null)[];
            end(session: unknown): void;
          };
        }
        const { loop } = stage.server as unknown as Inside;
        const used = loop.sessions.filter((session) => (session?.channel.taken ?? 0) > 0);
        for (const session of used) loop.end(session);
        await stage.until('end', () => used.every((session) => !loop.sessions.includes(session)));
      });
      await client.run((stage) => {
        (stage.notes['worker'] as { postMessage(what: string): void }).postMessage('go');
      });
      const end = keys === '' ? 'DEVICE_GONE' : 'OK';
      expect(await untilTold(client, 2)).toEqual(['here', end]);
      await client.run((stage) => stage.device.close());
    },
  );

  it('by the death of a thread opens another, as soon as it can', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', newFile());
    const client = await startClient(hub, 'client', 'disk0', '&queues=1');
    await startThread(
      client,
      `device.queue({ depth: 1 });
       parentPort.postMessage('here');
       setInterval(() => {}, 1000);`,
    );
    await untilTold(client, 1);
    await server.run((stage) => {
      interface Inside {
        listeners: Map<string, (incoming: Incoming) => void>;
      }
      interface Incoming {
        refuse(code: string, message: string): void;
      }
      const { listeners } = stage.domain as unknown as Inside;
      const accept = listeners.get('device')!;
      stage.notes['asked'] = 0;
      listeners.set('device', (incoming) => {
        stage.notes['asked'] = (stage.notes['asked'] as number) + 1;
        if ((stage.notes['asked'] as number) < 4) incoming.refuse('REFUSED', 'not yet');
        else accept(incoming);
      });
    });
    await client.run((stage) =>
      (stage.notes['worker'] as { terminate(): Promise<void> }).terminate().then(() => {}),
    );
    const code = await client.run(async (stage) => {
      const { device } = stage;
      for (let tries = 0; ; tries++) {
        try {
          const queue = device.queue({ depth: 1 });
          await queue.close();
          return device.flush().then(() => 'OK');
        } catch (error) {
          const { code: why } = error as { code: string };
          if (why !== 'NO_QUEUES' || tries === 400) return why;
          await stage.sleep(10);
        }
      }
    });
    expect(code).toBe('OK');
    expect(await server.run((stage) => stage.notes['asked'])).toBe(4);
  });
});
