// A client that writes what no honest one would: every request gets its status or ends the queue,
// and nobody else notices. And a server that completes what it was not asked for.

import { describe, expect, it } from 'vitest';
import { hubPath, startHub, startMember } from './actors.js';
import { newFile, startClient, startRaw, startServer } from './device-actors.js';

const [OK, BAD_ADDRESS, BAD_RANGE, BAD_REQUEST, UNSUPPORTED, TOO_LARGE] = [0, 1, 2, 3, 4, 5];

describe('a hostile client', () => {
  it("gets a status for each wrong request, and none of the server's memory", async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', newFile());
    const secret = await server.run((stage) => {
      // Memory of the server's: private, and shared with everybody.
      const own = stage.addressSpace().create(2 ** 21);
      own.u8.fill(0x5e);
      const shared = stage.domain.alloc(4096);
      return { own: own.address, shared: shared.address, slot: stage.domain.slot };
    });
    const raw = await startRaw(hub);
    const wrong: [string, number[], number][] = [
      ['a flag', [1 | (1 << 9), 0, 8, 0, 0, 0, 0, 0], BAD_REQUEST],
      ['another', [1 | (1 << 11), 0, 8], BAD_REQUEST],
      ['segments', [3 | (7 << 16), 0, 8], BAD_REQUEST],
      ['no blocks', [1, 0, 0], BAD_REQUEST],
      ['no such operation', [0, 0, 8], UNSUPPORTED],
      ['a compare', [7, 0, 8], UNSUPPORTED],
      ['a copy', [8, 0, 8], UNSUPPORTED],
      ['a native command', [10, 0, 8], UNSUPPORTED],
      ['a packet', [16, 0, 8], UNSUPPORTED],
      ['one of the future', [31, 0, 8], UNSUPPORTED],
      ['past the end', [1, 0, 8, 0, 16384 - 7, 0], BAD_RANGE],
      ['far past the end', [1, 0, 8, 0, 0xffffffff, 0xffffffff], BAD_RANGE],
      ['far too much', [1, 0, 0x7fffffff], TOO_LARGE],
      ['far too much to write', [3, 0, 0xffffffff, 0, 0, 0, 4096, 16], TOO_LARGE],
      ['address 0', [3, 0, 8], BAD_ADDRESS],
      ['no address', [3, 0, 8, 0, 0, 0, 0, 0xffffffff], BAD_ADDRESS],
      ['memory of nobody', [3, 0, 8, 0, 0, 0, 0, 250 * 16], BAD_ADDRESS],
    ];
    for (const at of [secret.own, secret.shared, secret.slot * 2 ** 36]) {
      const address = [at % 2 ** 32, Math.floor(at / 2 ** 32)];
      wrong.push([`the server's ${at}`, [3, 0, 8, 0, 0, 0, ...address], BAD_ADDRESS]);
    }
    // From the last bytes of the slot below into the server's.
    const edge = secret.slot * 2 ** 36 - 512;
    const over = [edge % 2 ** 32, Math.floor(edge / 2 ** 32)];
    wrong.push(["into the server's slot", [3, 0, 8, 0, 0, 0, ...over], BAD_ADDRESS]);
    const got = await raw.run(
      async (stage, list) => {
        const notes = stage.notes as Record<string, (...args: unknown[]) => Promise<never>>;
        const records = await notes['connect']!();
        const statuses: unknown[] = [];
        for (const [i, [name, words]] of list.entries()) {
          words[1] = i + 1000;
          await notes['put']!(records, words);
          const done = (await notes['next']!(records)) as { tag: number; status: number } | null;
          statuses.push([name, done?.tag === i + 1000 ? done.status : done]);
        }
        // The queue is as good as before.
        const buffer = stage.domain.alloc(4096);
        const address = [buffer.address % 2 ** 32, Math.floor(buffer.address / 2 ** 32)];
        await notes['put']!(records, [3, 7, 8, 0, 0, 0, ...address]);
        statuses.push(['good', ((await notes['next']!(records)) as { status: number }).status]);
        return statuses;
      },
      wrong.map(([name, words]) => [name, words] as [string, number[]]),
    );
    expect(got).toEqual([...wrong.map(([name, , status]) => [name, status]), ['good', OK]]);
    const { clients } = await server.run((stage) => stage.server.stats());
    expect(clients[0]).toMatchObject({ name: 'raw', inFlight: 0, errors: wrong.length });
  });

  it.each([
    ['is kept from what others share with the server alone', false, BAD_ADDRESS],
    ['may write from there where the server says so', true, OK],
  ])('%s', async (_what, thirdParties, status) => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', newFile(), { thirdParties });
    const other = await startMember(hub, 'other', { share: { names: ['disk0'] } });
    const secret = await other.run((stage) => {
      const buffer = stage.domain.alloc(4096);
      buffer.u8.fill(0x5e);
      stage.buffers.push(buffer);
      return buffer.address;
    });
    await server.run(
      (stage, at) => stage.until('there', () => stage.addressSpace().find(at) !== undefined),
      secret,
    );
    const raw = await startRaw(hub);
    const got = await raw.run(async (stage, at) => {
      const notes = stage.notes as Record<string, (...args: unknown[]) => Promise<never>>;
      const records = await notes['connect']!();
      await notes['put']!(records, [3, 7, 8, 0, 0, 0, at % 2 ** 32, Math.floor(at / 2 ** 32)]);
      return ((await notes['next']!(records)) as { status: number }).status;
    }, secret);
    expect(got).toBe(status);
  });

  it('ends its queue by what cannot be a request', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', newFile());
    const raw = await startRaw(hub);
    const ends = await raw.run(async (stage) => {
      const notes = stage.notes as Record<string, (...args: unknown[]) => Promise<never>>;
      type Completion = { status: number; words: number[] } | null;
      const found: Record<string, unknown> = {};
      const loanOf = async (records: unknown): Promise<number[]> => {
        await notes['put']!(records, [2, 1, 8]);
        return ((await notes['next']!(records)) as Completion)!.words;
      };
      for (const op of [32, 33, 35, 37, 39, 99, 255]) {
        const records = await notes['connect']!();
        await notes['put']!(records, [op, 1, 8]);
        found[`kind ${op}`] = await notes['next']!(records);
      }
      {
        const records = await notes['connect']!();
        const [lo = 0, hi = 0, buffer = 0] = await loanOf(records);
        const back = [38, buffer, 0, 0, 0, 0, lo, hi];
        await notes['put']!(records, back);
        await notes['put']!(records, [4, 2]);
        found['one release'] = ((await notes['next']!(records)) as Completion)?.status;
        await notes['put']!(records, back);
        found['a second release'] = await notes['next']!(records);
      }
      {
        const mine = await notes['connect']!();
        const other = await notes['connect']!();
        const [lo = 0, hi = 0, buffer = 0] = await loanOf(mine);
        await notes['put']!(other, [38, buffer, 0, 0, 0, 0, lo, hi]);
        found["another queue's loan"] = await notes['next']!(other);
        await notes['put']!(mine, [38, buffer, 0, 0, 0, 0, lo, hi ^ (1 << 12)]);
        found['another generation'] = await notes['next']!(mine);
        const third = await notes['connect']!();
        await notes['put']!(third, [38, 0xffffffff]);
        found['no such buffer'] = await notes['next']!(third);
      }
      {
        const records = (await notes['connect']!()) as unknown as { header: Uint32Array };
        await notes['put']!(records, [1, 1, 8]);
        await notes['next']!(records);
        records.header[17] = 0x40000000;
        for (let i = 0; i < 3; i++) await notes['put']!(records, [1, 1, 8]);
        let last: unknown = 0;
        for (let i = 0; i < 3 && last !== null; i++) last = await notes['next']!(records);
        found['done before it was sent'] = last;
      }
      return found;
    });
    for (const [what, end] of Object.entries(ends)) {
      expect([what, end]).toEqual([what, what === 'one release' ? OK : null]);
    }
    await server.run((stage) =>
      stage.until('freed', () => stage.server.stats().clients.every(({ lent }) => lent === 0)),
    );
  });

  it('is refused channels for anything but the device', async () => {
    const hub = hubPath();
    await startHub(hub);
    await startServer(hub, 'disk0', 'null:8MiB', { queues: 2 });
    const raw = await startRaw(hub);
    const codes = await raw.run(async (stage) => {
      const { link } = stage.notes as { link: Awaited<ReturnType<typeof stage.domain.linkTo>> };
      const asks = [
        '',
        '{',
        '[]',
        'null',
        '{"version":1}',
        '{"version":1,"kind":"root"}',
        '{"version":2,"kind":"queue"}',
        'x'.repeat(4096),
      ];
      const found: string[] = [];
      for (const ask of [
        ...asks,
        ...Array.from({ length: 3 }, () => '{"version":1,"kind":"queue"}'),
      ]) {
        const code = await link.connect('device', 64, ask).then(
          () => 'OK',
          (error: unknown) => (error as { code: string }).code,
        );
        found.push(code);
      }
      return found;
    });
    expect(codes).toEqual([
      ...new Array<string>(6).fill('PEER_MISBEHAVED'),
      'VERSION_MISMATCH',
      'PEER_MISBEHAVED',
      'OK',
      'OK',
      'NO_QUEUES',
    ]);
  });

  it('harms nobody by noise, nor by what it does not read', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startServer(hub, 'disk0', newFile());
    const honest = await startClient(hub, 'honest', 'disk0');
    const work = honest.run(async (stage) => {
      const { device } = stage;
      stage.notes['stop'] = false;
      let count = 0;
      let wrong = 0;
      const lane = async (lba: number): Promise<void> => {
        const buffer = device.memory.alloc(4096);
        while (stage.notes['stop'] === false) {
          const word = ++count;
          buffer.u32.fill(word);
          await device.write(lba, buffer);
          buffer.u32.fill(0);
          await device.read(lba, buffer);
          if (!buffer.u32.every((one) => one === word)) wrong++;
        }
      };
      // Above where the noise writes.
      await Promise.all([0, 1, 2, 3].map((i) => lane(8192 + i * 8)));
      return { wrong, some: count > 20 };
    });
    const raw = await startRaw(hub);
    const sent = await raw.run(async (stage) => {
      const notes = stage.notes as Record<string, (...args: unknown[]) => Promise<never>>;
      let seed = 12345;
      const random = (below: number): number => {
        seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
        return Math.floor((seed / 2 ** 32) * below);
      };
      const buffer = stage.domain.alloc(65536);
      const [lo, hi] = [buffer.address % 2 ** 32, Math.floor(buffer.address / 2 ** 32)];
      let total = 0;
      // One that never reads what comes.
      const deaf = await notes['connect']!();
      for (let i = 0; i < 64; i++) await notes['put']!(deaf, [2, i, 8]);
      for (let life = 0; life < 40; life++) {
        const records = (await notes['connect']!()) as unknown as {
          poll(max: number): number;
          over: boolean;
          taken: number;
          header: Uint32Array;
          close(): void;
        };
        for (let i = 0; i < 500 && !records.over; i++) {
          const words = Array.from({ length: 8 }, () => random(2 ** 32));
          // Mostly operations there are, and numbers that are nearly right.
          if (random(8) > 0) words[0] = random(40);
          if (random(4) > 0) words[2] = random(200);
          if (random(4) > 0) [words[4], words[5]] = [random(8000), 0];
          if (random(2) > 0) [words[6], words[7]] = [lo + random(70000), hi + random(2)];
          const put = (await notes['put']!(records, words)) as unknown as boolean;
          if (put) total++;
          records.poll(random(64));
          if (random(4) > 0) records.header[17] = records.taken;
          if (!put) await stage.sleep(1);
        }
        records.close();
      }
      return total;
    });
    expect(sent).toBeGreaterThan(500);
    await honest.run((stage) => void (stage.notes['stop'] = true));
    expect(await work).toEqual({ wrong: 0, some: true });
    await raw.kill();
    const left = await server.run(async (stage) => {
      await stage.until('end', () => stage.server.stats().clients.length === 1);
      return stage.server.stats().inFlight;
    });
    expect(left).toBe(0);
  });
});

describe('a hostile server', () => {
  it.each([
    ['a tag that is not in flight', [37, 5, 0]],
    ['no tag at all', [37, 0xffffffff, 0]],
    ['a record of another kind', [33, 0, 0]],
    ['a buffer of nobody', [37, 'tag', 0, 4096, 200 * 16]],
    ["a buffer of the client's own", [37, 'tag', 0, 'lo', 'hi']],
    ['a buffer past its memory', [37, 'tag', 0, 0xfffff000, 'theirs']],
  ])('that completes a read with %s is cut off', async (_what, words) => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startMember(hub, 'disk0');
    await server.run(
      (stage, answer) => {
        const facts = {
          version: 1,
          scheme: 'null',
          info: {
            ...{ blockSize: 512, blocks: 16384, maxTransferBlocks: 1024, addressAlign: 1 },
            ...{ segmentAlign: 1, boundary: 0, atomicBlocks: 1, operations: 0x7e, flags: 256 },
            ...{ physicalBlockSize: 4096, durable: true, description: {} },
          },
        };
        stage.domain.listenRaw('device', (incoming) => {
          const { kind } = JSON.parse(incoming.meta) as { kind: string };
          const { records } = incoming.accept(kind === 'info' ? JSON.stringify(facts) : '');
          if (kind === 'info') return;
          void (async () => {
            while ((await records.wait()) === 0 && !records.over);
            if (records.over) return;
            const [, tag = 0, , , , , lo = 0, hi = 0] = records.rq;
            const theirs = stage.domain.slot * 16 + 15;
            const known: Record<string, number> = { tag, lo, hi, theirs };
            const at = (records.tail & records.mask) * 8;
            records.reserve(1);
            records.sq.set(
              answer.map((word) => (typeof word === 'string' ? known[word]! : word)),
              at,
            );
            records.submit();
          })();
        });
      },
      words as (number | string)[],
    );
    const client = await startClient(hub, 'client', 'disk0', '&queues=1&reconnect=1');
    const code = await client.run(async (stage) => {
      const buffer = stage.device.memory.alloc(4096);
      return stage.device.read(0, buffer).then(
        () => '',
        (error: unknown) => (error as { code: string }).code,
      );
    });
    expect(code).toBe('DEVICE_GONE');
  });

  it('is refused where what it says of its device cannot be', async () => {
    const hub = hubPath();
    await startHub(hub);
    const server = await startMember(hub, 'disk0');
    const bad = [
      '',
      '{}',
      '{"info":{}}',
      '{"scheme":"x","info":{"blockSize":500}}',
      '{"scheme":"x","info":{"blockSize":512,"blocks":-1}}',
      '{"scheme":"x","info":{"blockSize":512,"blocks":1e300}}',
      '{"scheme":"x","info":{"blockSize":512,"blocks":8,"maxTransferBlocks":0}}',
    ];
    await server.run((stage, list) => {
      let next = 0;
      stage.domain.listenRaw('device', (incoming) => void incoming.accept(list[next++]!));
    }, bad);
    const client = await startMember(hub, 'client');
    const codes = await client.run(
      async (stage, uri, count) => {
        const found: string[] = [];
        for (let i = 0; i < count; i++) {
          const code = await stage.open(uri).then(
            () => 'OK',
            (error: unknown) => (error as { code: string }).code,
          );
          found.push(code);
        }
        return found;
      },
      `idc:${hub}/disk0`,
      bad.length,
    );
    expect(codes).toEqual(bad.map(() => 'PEER_MISBEHAVED'));
  });
});
