// What one client can make a server keep, or do, however it opens and closes its channels.

import { describe, expect, it } from 'vitest';
import { hubPath, startHub, takeDescriptors, type Actor } from './actors.js';
import { startClient, startRaw, startServer } from './device-actors.js';

const KIB_64 = 64 * 1024;

describe('a client that opens queues anew', () => {
  it.each([
    ['goes without a word', false],
    ['says that it took what was never sent', true],
  ])('and %s has no more memory than one client may have', async (_what, lies) => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', 'null:8MiB', { lentBytes: KIB_64 });
    const raw = await startRaw(hub);
    const addresses = await raw.run(async (stage, wrong) => {
      type Call = (...args: unknown[]) => Promise<never>;
      const { connect, put, next } = stage.notes as Record<string, Call>;
      interface Records {
        readonly header: Uint32Array;
        readonly peerEnded: boolean;
        readonly wakeFd: number;
      }
      const seen: number[] = [];
      for (let life = 0; life < 4; life++) {
        const records = (await connect!(8)) as Records;
        for (let i = 0; i < 4; i++) {
          await put!(records, [2, i, 32]);
          const { status, words } = (await next!(records)) as { status: number; words: number[] };
          if (status === 0) seen.push((words[1]! & 0xfff) * 2 ** 32 + words[0]!);
        }
        if (wrong) {
          records.header[16] = 0x40000000;
          for (let i = 0; i < 8; i++) await put!(records, [4, i]);
        } else {
          stage.native.unixShutdown(records.wakeFd);
        }
        await stage.until('end', () => records.peerEnded);
      }
      return seen;
    }, lies);
    expect(new Set(addresses).size).toBe(4);
    // Who may still look at them keeps them, and gets no others; who lied has lost them.
    expect(addresses.length).toBe(lies ? 16 : 4);
    const shown = await server.run((stage) => stage.server.stats().clients);
    expect(shown).toMatchObject([{ name: 'raw', lentBytes: KIB_64, lent: lies ? 0 : 4 }]);
    await raw.kill();
    await server.run((stage) =>
      stage.until('forgotten', () => stage.server.stats().clients.length === 0),
    );
  });

  it('has no more of them, ended by the server or not', async () => {
    const hub = hubPath();
    await startHub(hub);
    await startServer(hub, 'disk0', 'null:8MiB', { queues: 3 });
    const raw = await startRaw(hub);
    const codes = await raw.run(async (stage) => {
      const { connect, put } = stage.notes as Record<
        string,
        (...args: unknown[]) => Promise<never>
      >;
      const found: string[] = [];
      for (let life = 0; life < 5; life++) {
        const code = await connect!(8).then(
          async (records: { peerEnded: boolean; close(): void }) => {
            await put!(records, [99]);
            await stage.until('end', () => records.peerEnded);
            if (life === 0) records.close();
            return 'OK';
          },
          (error: unknown) => (error as { code: string }).code,
        );
        found.push(code);
      }
      return found;
    });
    expect(codes).toEqual(['OK', 'OK', 'OK', 'OK', 'NO_QUEUES']);
  });

  it('finds its limits and its counts as it left them', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', 'null:8MiB', { limitIops: 20 });
    const client = await startClient(hub, 'client', 'disk0');
    await client.run(async (stage, uri) => {
      await stage.device.close();
      for (let life = 0; life < 8; life++) {
        const device = await stage.open(uri);
        await device.flush();
        await device.close();
      }
    }, `idc:${hub}/disk0`);
    const [stats] = await server.run((stage) => stage.server.stats().clients);
    expect(stats).toMatchObject({ name: 'client', others: 8 });
    // Once for each that had to wait, however long it did.
    expect(stats!.throttled).toBeGreaterThan(0);
    expect(stats!.throttled).toBeLessThanOrEqual(8);
  });
});

describe('a limit of bytes', () => {
  it.each([
    ['DISCARD', 5],
    ['WRITE_ZEROES', 6],
  ])('counts the ranges of %s', async (_what, op) => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', 'null:8MiB', { limitBytes: 2 ** 20 });
    const raw = await startRaw(hub);
    const statuses = await raw.run(async (stage, code) => {
      type Call = (...args: unknown[]) => Promise<never>;
      const { connect, put, next } = stage.notes as Record<string, Call>;
      const records = await connect!(8);
      const found: number[] = [];
      for (let i = 0; i < 4; i++) {
        await put!(records, [code, i, 128]);
        found.push(((await next!(records)) as { status: number }).status);
      }
      return found;
    }, op);
    expect(statuses).toEqual([0, 0, 0, 0]);
    const [stats] = await server.run((stage) => stage.server.stats().clients);
    expect(stats!.throttled).toBeGreaterThan(0);
  });
});

describe('reads of one queue', () => {
  it('wait for memory that another queue of the client has, also where that sleeps', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', 'null:8MiB', { lentBytes: KIB_64 });
    const raw = await startRaw(hub);
    await raw.run(async (stage) => {
      type Call = (...args: unknown[]) => Promise<never>;
      const { connect, put } = stage.notes as Record<string, Call>;
      interface Records {
        readonly header: Uint32Array;
        readonly peerAsleep: boolean;
        readonly taken: number;
        wait(ms: number): Promise<number>;
      }
      const full = (await connect!(8)) as Records;
      for (let i = 0; i < 4; i++) await put!(full, [1, i, 32]);
      for (let got = 0; got < 4;) got += await full.wait(5000);
      await stage.until('asleep', () => full.peerAsleep);
      const other = await connect!(8);
      await put!(other, [1, 7, 32]);
      Object.assign(stage.notes, { full, other });
    });
    await server.run((stage) =>
      stage.until('wait', () => stage.server.stats().clients[0]!.deferred > 0),
    );
    const statuses = await raw.run(async (stage) => {
      type Call = (...args: unknown[]) => Promise<never>;
      const { put, next } = stage.notes as Record<string, Call>;
      const { full, other } = stage.notes as Record<string, unknown>;
      const { header, taken } = full as { header: Uint32Array; taken: number };
      header[17] = taken; // without a word
      const read = (await next!(other)) as { status: number };
      await put!(other, [2, 8, 128]); // a loan of all there is
      const loan = (await next!(other)) as { status: number };
      return [read.status, loan.status];
    });
    expect(statuses).toEqual([0, 0]);
    const [stats] = await server.run((stage) => stage.server.stats().clients);
    expect(stats!.deferred).toBeLessThanOrEqual(2);
  });
});

describe('channels that tell of the device', () => {
  it('are bounded in size, and in number until some are closed', async () => {
    const hub = hubPath();
    await startHub(hub);
    await startServer(hub, 'disk0', 'null:8MiB');
    const raw = await startRaw(hub);
    const found = await raw.run(async (stage) => {
      const { link } = stage.notes as { link: Awaited<ReturnType<typeof stage.domain.linkTo>> };
      const ask = '{"version":1,"kind":"info"}';
      const codeOf = (error: unknown): string => (error as { code: string }).code;
      const large = await link.connect('device', 128, ask).then(() => 'OK', codeOf);
      const channels = await Promise.all(
        Array.from({ length: 16 }, () => link.connect('device', 16, ask)),
      );
      const more = await link.connect('device', 16, ask).then(() => 'OK', codeOf);
      channels[3]!.records.close();
      const again = await link.connect('device', 16, ask).then(() => 'OK', codeOf);
      return { large, more, again };
    });
    expect(found).toEqual({ large: 'PEER_MISBEHAVED', more: 'TOO_MANY_CHANNELS', again: 'OK' });
  });
});

describe('a server', () => {
  /** Whether another client finds the device served. */
  async function serves(hub: string): Promise<void> {
    const honest = await startClient(hub, 'honest', 'disk0');
    await honest.run((stage) => stage.device.flush());
  }

  /** Asks for a queue; gives the code of the refusal, or what a flush on it ended with. */
  async function ask(raw: Actor): Promise<string> {
    return raw.run(async (stage) => {
      type Call = (...args: unknown[]) => Promise<never>;
      const { connect, put, next } = stage.notes as Record<string, Call>;
      try {
        const records = await connect!(8);
        await put!(records, [4, 1]);
        const done = (await next!(records)) as { status: number } | null;
        return done === null ? 'ended' : `status ${done.status}`;
      } catch (error) {
        return (error as { code: string }).code;
      }
    });
  }

  it('is not harmed by a descriptor that nobody can wait for', async () => {
    const hub = hubPath();
    await startHub(hub);
    await startServer(hub, 'disk0', 'null:8MiB');
    const raw = await startRaw(hub);
    const codes = await raw.run(async (stage, file) => {
      const { link } = stage.notes as { link: Awaited<ReturnType<typeof stage.domain.linkTo>> };
      const { wake } = link.wire.pair();
      const fds = [stage.native.fileOpen(file, 0, 0)];
      Object.assign(link.wire, { pair: () => ({ wake, fds }) });
      return link.connect('device', 16, '{"version":1,"kind":"queue"}').then(
        () => 'OK',
        (error: unknown) => (error as { code: string }).code,
      );
    }, process.execPath);
    expect(codes).toBe('PEER_GONE');
    await serves(hub);
  });

  it('refuses what it has no memory for, and goes on with who asked', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', 'null:8MiB');
    const raw = await startRaw(hub);
    await server.run(async (stage) => {
      const { memory } = stage.domain;
      const real = memory.alloc.bind(memory);
      const error = await stage.open('nothing:').catch((thrown: unknown) => thrown as Error);
      const alloc = (): never => {
        throw Object.assign(error, { code: 'OUT_OF_MEMORY' });
      };
      Object.assign(memory, { alloc });
      stage.notes['memory'] = () => Object.assign(memory, { alloc: real });
    });
    expect(await ask(raw)).toBe('OUT_OF_MEMORY');
    await server.run((stage) => void (stage.notes['memory'] as () => void)());
    expect(await ask(raw)).toBe('status 0');
  });

  it('refuses what it has no descriptor for, and goes on with who asked', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', 'null:8MiB');
    const raw = await startRaw(hub);
    expect(await ask(raw)).toBe('status 0');
    // Of the one that comes it has no copy; then none to watch it by; then all.
    for (const [free, end] of [
      [1, 'TOO_MANY_FILES'],
      [2, 'ended'],
      [4, 'status 0'],
    ] as const) {
      const giveBack = await takeDescriptors(server, free);
      expect([free, await ask(raw)]).toEqual([free, end]);
      await giveBack();
    }
    await serves(hub);
  });
});
