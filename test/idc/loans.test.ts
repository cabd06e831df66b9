// Loans between processes: lent, passed on, given back, and taken back from the dead.

import { describe, expect, it } from 'vitest';
import { startAll, type Actor } from './actors.js';

const PATTERN = 0x5eed_0001;

/** Channels a → b → c, on which nothing moves by itself. `in` is where a domain is sent to. */
async function chain(): Promise<{ a: Actor; b: Actor; c: Actor }> {
  const { a, b, c } = await startAll('a', 'b', 'c');
  for (const who of [a, b, c]) {
    await who.run((stage) => {
      stage.domain.listen('in', (channel) => {
        stage.channels[`from ${channel.peer.name}`] = channel;
      });
    });
  }
  for (const [who, to] of [
    [a, 'b'],
    [b, 'c'],
    [b, 'a'],
    [c, 'a'],
  ] as const) {
    await who.run(async (stage, name) => {
      stage.channels[`to ${name}`] = await stage.domain.connect(name, 'in');
    }, to);
  }
  return { a, b, c };
}

/** Sends a buffer full of a pattern. */
const lend = (who: Actor, to: string, bytes = 65536): Promise<number> =>
  who.run(
    async (stage, name, size, pattern) => {
      const buffer = stage.domain.alloc(size);
      buffer.u32.fill(pattern);
      const { address } = buffer;
      await stage.channels[`to ${name}`]!.send(buffer);
      return address;
    },
    to,
    bytes,
    PATTERN,
  );

/** Takes a message and keeps it; its address, owner, and who it came from. */
const take = (who: Actor, from: string): Promise<{ address: number; owner: number; via: number }> =>
  who.run(async (stage, name) => {
    const message = (await stage.channels[`from ${name}`]!.receive())!;
    stage.messages.push(message);
    const { address, owner, via } = message.body;
    return { address, owner, via };
  }, from);

const pass = (who: Actor, to: string): Promise<void> =>
  who.run(async (stage, name) => {
    await stage.channels[`to ${name}`]!.send(stage.messages.shift()!);
  }, to);

const isGood = (who: Actor): Promise<boolean> =>
  who.run((stage, pattern) => {
    const words = stage.messages[0]!.u32 as unknown as Uint32Array;
    return words.every((word) => word === pattern);
  }, PATTERN);

const release = (who: Actor): Promise<void> =>
  who.run((stage) => stage.messages.shift()!.release());

const lentBy = (who: Actor): Promise<string[]> =>
  who.run((stage) =>
    stage.domain
      .loans()
      .lent.map(({ consumer, holds }) => `${consumer}: ${holds}`)
      .sort(),
  );

const strays = (who: Actor): Promise<number> => who.run((stage) => stage.domain.desk.strays);

/** Overwrites what is free: who reads a buffer that came home too early sees it. */
const overwrite = (who: Actor): Promise<void> =>
  who.run((stage) => {
    const buffers = Array.from({ length: 64 }, () => stage.domain.alloc(65536));
    for (const buffer of buffers) buffer.u32.fill(0xdead_dead);
    for (const buffer of buffers) buffer.free();
  });

describe('a loan', () => {
  it('is at one address for everybody, and goes home from the last who has it', async () => {
    const { a, b, c } = await chain();
    const address = await lend(a, 'b');
    expect(await lentBy(a)).toEqual(['2: 1']);
    expect(await take(b, 'a')).toEqual({ address, owner: 1, via: 1 });
    await pass(b, 'c');
    expect(await take(c, 'b')).toEqual({ address, owner: 1, via: 2 });
    expect(await lentBy(a)).toEqual(['3: 1']);
    expect(await isGood(c)).toBe(true);
    await release(c);
    expect(await lentBy(a)).toEqual([]);
    expect(await a.run((stage) => stage.domain.memory.taken)).toBe(5);
    expect(await strays(a)).toBe(0);
  });

  it('may go round, back to its owner and out again', async () => {
    const { a, b, c } = await chain();
    const address = await lend(a, 'b');
    await take(b, 'a');
    await pass(b, 'c');
    await take(c, 'b');
    await pass(c, 'a');
    expect(await take(a, 'c')).toEqual({ address, owner: 1, via: 3 });
    expect(await lentBy(a)).toEqual(['1: 1']);
    await pass(a, 'b');
    expect(await take(b, 'a')).toEqual({ address, owner: 1, via: 1 });
    await pass(b, 'a');
    expect(await take(a, 'b')).toEqual({ address, owner: 1, via: 2 });
    expect(await isGood(a)).toBe(true);
    await release(a);
    expect(await lentBy(a)).toEqual([]);
    expect(await strays(a)).toBe(0);
  });

  it('may be given back in any order', async () => {
    const { a, b, c } = await chain();
    for (let i = 0; i < 100; i++) {
      await lend(a, 'b', 4096);
      await take(b, 'a');
      if (i % 2 === 0) {
        await b.run(async (stage) => {
          await stage.channels['to c']!.send(stage.messages.pop()!);
        });
        await take(c, 'b');
      }
    }
    for (const who of [b, c]) {
      await who.run((stage) => {
        const { messages } = stage;
        while (messages.length > 0) {
          messages.splice(((messages.length * 7) % 11) % messages.length, 1)[0]!.release();
        }
      });
    }
    expect(await lentBy(a)).toEqual([]);
    expect(await a.run((stage) => stage.domain.memory.taken)).toBe(5);
  });

  it('may be given back before its owner has seen that it was passed on', async () => {
    const { a, b, c } = await chain();
    for (let i = 0; i < 20; i++) {
      await lend(a, 'b');
      await take(b, 'a');
    }
    a.stop();
    for (let i = 0; i < 20; i++) {
      await pass(b, 'c');
      await take(c, 'b');
      expect(await isGood(c)).toBe(true);
      await release(c);
    }
    a.goOn();
    expect(await lentBy(a)).toEqual([]);
    expect(await strays(a)).toBe(0);
    expect(await a.run((stage) => stage.domain.memory.taken)).toBe(5);
  });

  it('may be passed on to a domain that the owner has not met yet', async () => {
    const { path, a, b } = await startAll('a', 'b');
    await b.run((stage) => {
      stage.domain.listen('in', (channel) => void (stage.channels['from a'] = channel));
    });
    await a.run(async (stage) => {
      stage.channels['to b'] = await stage.domain.connect('b', 'in');
    });
    await lend(a, 'b');
    await take(b, 'a');
    a.stop();
    const { startMember } = await import('./actors.js');
    const c = await startMember(path, 'c');
    await c.run((stage) => {
      stage.domain.listen('in', (channel) => void (stage.channels['from b'] = channel));
    });
    await b.run(async (stage) => {
      stage.channels['to c'] = await stage.domain.connect('c', 'in');
    });
    await pass(b, 'c');
    await c.run((stage) => stage.until('a message', () => stage.channels['from b']!.records.ready));
    const taken = take(c, 'b');
    await c.run((stage) => stage.sleep(100));
    // The owner looks at its rings before it hears of c.
    const looked = a.run((stage) => {
      stage.domain.desk.service();
      const buffers = Array.from({ length: 64 }, () => stage.domain.alloc(65536));
      for (const buffer of buffers) buffer.u32.fill(0xdead_dead);
      for (const buffer of buffers) buffer.free();
      return stage.domain.memory.taken;
    });
    a.goOn();
    expect(await looked).toBeGreaterThanOrEqual(3);
    expect((await taken).via).toBe(2);
    await overwrite(a);
    expect(await isGood(c)).toBe(true);
    await release(c);
    await a.run((stage) => stage.until('home', () => stage.domain.loans().lent.length === 0));
    expect(await strays(a)).toBe(0);
  });

  it('is lost on a domain that its owner does not share with', async () => {
    const { hubPath, startHub, startMember } = await import('./actors.js');
    const path = hubPath();
    await startHub(path);
    const a = await startMember(path, 'a', { share: { names: ['b'] } });
    const b = await startMember(path, 'b');
    const c = await startMember(path, 'c');
    for (const who of [b, c]) {
      await who.run((stage) => {
        stage.domain.listen('in', (channel) => {
          stage.channels[`from ${channel.peer.name}`] = channel;
        });
      });
    }
    await a.run(async (stage) => {
      stage.channels['to b'] = await stage.domain.connect('b', 'in');
    });
    await b.run(async (stage) => {
      stage.channels['to c'] = await stage.domain.connect('c', 'in');
    });
    await lend(a, 'b');
    await take(b, 'a');
    await pass(b, 'c');
    await b.run(async (stage) => {
      const own = stage.domain.alloc(64);
      own.u32[0] = 5;
      await stage.channels['to c']!.send(own);
    });
    const first = await c.run(async (stage) => {
      await stage.until('a channel', () => 'from b' in stage.channels);
      const message = (await stage.channels['from b']!.receive())!;
      return [message.u32[0], message.body.owner, stage.channels['from b']!.lost];
    });
    expect(first).toEqual([5, 2, 1]);
    await a.run((stage) => stage.until('home', () => stage.domain.loans().lent.length === 0));
  });
});

describe('a death', () => {
  it('of the consumer brings its loans home', async () => {
    const { a, b } = await chain();
    for (let i = 0; i < 10; i++) await lend(a, 'b');
    for (let i = 0; i < 5; i++) await take(b, 'a');
    expect(await lentBy(a)).toEqual(['2: 10']);
    await b.kill();
    await a.run((stage) => stage.until('home', () => stage.domain.loans().lent.length === 0));
    // Two loan rings less one, and what is asked for on the other channel.
    await a.run((stage) => {
      stage.channels['to b']!.close();
      stage.channels['from b']!.close();
      return stage.until('home', () => stage.domain.memory.taken === 2);
    });
  });

  it('of the middle leaves what it passed on with who has it', async () => {
    const { a, b, c } = await chain();
    for (let i = 0; i < 6; i++) {
      await lend(a, 'b');
      await take(b, 'a');
    }
    for (let i = 0; i < 3; i++) await pass(b, 'c');
    for (let i = 0; i < 2; i++) await take(c, 'b');
    // One is in c's ring, three at b.
    await b.kill();
    await a.run((stage) => stage.until('taken', () => stage.domain.loans().lent.length === 1));
    await expect.poll(() => lentBy(a)).toEqual(['3: 3']);
    await overwrite(a);
    expect(await isGood(c)).toBe(true);
    await c.run((stage) => stage.until('the end', () => stage.domain.links.size === 1));
    await take(c, 'b');
    expect(await c.run((stage) => stage.messages.length)).toBe(3);
    for (let i = 0; i < 3; i++) {
      expect(await isGood(c)).toBe(true);
      await release(c);
    }
    expect(await lentBy(a)).toEqual([]);
    expect(await strays(a)).toBe(0);
  });

  it('of the middle before it published what it passed on brings that home', async () => {
    const { a, b, c } = await chain();
    for (let i = 0; i < 4; i++) {
      await lend(a, 'b');
      await take(b, 'a');
    }
    await pass(b, 'c');
    await take(c, 'b');
    // The transfers are on the ring, and the messages never come.
    await b.run(async (stage) => {
      const [to] = [stage.domain.links.get(3)!];
      stage.domain.desk.pass(stage.messages.shift()!.body, to);
      stage.domain.desk.pass(stage.messages.shift()!.body, to);
    });
    expect(await lentBy(a)).toEqual(['2: 1', '3: 3']);
    await b.kill();
    await expect.poll(() => lentBy(a)).toEqual(['3: 1']);
    expect(await isGood(c)).toBe(true);
    await release(c);
    expect(await lentBy(a)).toEqual([]);
    expect(await strays(a)).toBe(0);
  });

  it('of the middle while the last is stopped waits for its answer', async () => {
    const { a, b, c } = await chain();
    for (let i = 0; i < 3; i++) {
      await lend(a, 'b');
      await take(b, 'a');
      await pass(b, 'c');
    }
    await take(c, 'b');
    c.stop();
    await b.run((stage) => stage.domain.desk.service());
    await b.kill();
    await a.run((stage) => stage.until('the end', () => stage.domain.links.size === 1));
    await overwrite(a);
    expect(await lentBy(a)).toEqual(['3: 3']);
    c.goOn();
    await c.run((stage) => stage.until('the end', () => stage.domain.links.size === 1));
    await take(c, 'b');
    await take(c, 'b');
    for (let i = 0; i < 3; i++) {
      expect(await isGood(c)).toBe(true);
      await release(c);
    }
    await a.run((stage) => stage.until('home', () => stage.domain.loans().lent.length === 0));
    expect(await strays(a)).toBe(0);
  });

  it('of the owner lets the others read on until they give back', async () => {
    const { a, b, c } = await chain();
    for (let i = 0; i < 2; i++) {
      await lend(a, 'b');
      await take(b, 'a');
    }
    await pass(b, 'c');
    await take(c, 'b');
    const mapped = (who: Actor): Promise<number> =>
      who.run((stage) => {
        return stage
          .addressSpace()
          .list()
          .filter(({ address }) => Math.floor(address / 2 ** 36) === 1).length;
      });
    await a.kill();
    for (const who of [b, c]) {
      await who.run((stage) => stage.until('the end', () => !stage.domain.links.has(1)));
      expect(await isGood(who)).toBe(true);
      expect(await mapped(who)).toBeGreaterThan(0);
    }
    // It can still be passed on.
    await pass(b, 'c');
    await take(c, 'b');
    expect(await mapped(b)).toBe(0);
    expect(await c.run((stage) => stage.messages[1]!.u32[5])).toBe(PATTERN);
    await release(c);
    expect(await mapped(c)).toBeGreaterThan(0);
    await release(c);
    expect(await mapped(c)).toBe(0);
  });

  it('of a stopped member is like any other, and meanwhile nobody waits for it', async () => {
    const { path, a, b, c } = await startAll('a', 'b', 'c');
    for (const who of [b, c]) {
      await who.run((stage) => {
        stage.domain.listen('echo', (channel) => {
          void (async () => {
            for await (const message of channel) await message.reply(message);
          })().catch(() => {});
        });
      });
    }
    await a.run(async (stage) => {
      for (const name of ['b', 'c']) {
        stage.channels[name] = await stage.domain.connect(name, 'echo');
      }
    });
    b.stop();
    const asked = await a.run(async (stage) => {
      const late = stage.channels['b']!.request(stage.domain.alloc(64)).catch(
        (error: { code: string }) => error.code,
      );
      stage.notes['late'] = late;
      for (let i = 0; i < 500; i++) {
        const answer = await stage.channels['c']!.request(stage.domain.alloc(64));
        answer.release();
      }
      return stage.domain.loans().lent.map(({ consumer, holds }) => [consumer, holds]);
    });
    expect(asked).toEqual([[2, 1]]);
    const { startMember } = await import('./actors.js');
    const d = await startMember(path, 'd');
    await d.run(async (stage) => {
      const channel = await stage.domain.connect('c', 'echo');
      (await channel.request(stage.domain.alloc(64))).release();
      stage.domain.close();
    });
    await b.kill();
    expect(await a.run((stage) => stage.notes['late'])).toBe('PEER_GONE');
    await a.run((stage) => stage.until('home', () => stage.domain.loans().lent.length === 0));
  });
});

describe('in the end', () => {
  it('nothing is left', async () => {
    const { path, hub, a, b, c } = await startAll('a', 'b', 'c');
    const fds = (who: Actor): Promise<string[]> => who.run((stage) => stage.fds().sort());
    const { Actor: Actors } = await import('./actors.js');
    const bare = await fds(await Actors.start());
    for (const who of [a, b, c]) {
      await who.run((stage) => {
        stage.domain.listen('echo', (channel) => {
          void (async () => {
            for await (const message of channel) await message.reply(message);
          })().catch(() => {});
        });
      });
    }
    for (const who of [a, b, c]) {
      await who.run(async (stage) => {
        for (const peer of ['a', 'b', 'c'].filter((name) => name !== stage.domain.name)) {
          for (let i = 0; i < 20; i++) {
            const channel = await stage.domain.connect(peer, 'echo', { size: 64 });
            (await channel.request(stage.domain.alloc(100_000))).release();
            channel.close();
          }
        }
      });
    }
    for (const who of [a, b, c]) {
      // The two loan rings.
      await who.run((stage) => stage.until('home', () => stage.domain.memory.taken === 2));
    }
    for (const who of [a, b, c]) {
      await who.run((stage) => {
        stage.domain.close();
        stage.domain.close();
      });
    }
    for (const who of [a, b, c]) {
      expect(await fds(who)).toEqual(bare);
      expect(await who.run((stage) => stage.addressSpace().list())).toEqual([]);
    }
    await expect.poll(() => hub.run((stage) => stage.hub.list().length)).toBe(0);
    await hub.run((stage) => stage.hub.close());
    expect(await fds(hub)).toEqual(bare);
    const { existsSync } = await import('node:fs');
    expect(['', '.key', '.state', '.state.new'].map((end) => existsSync(path + end))).toEqual([
      false,
      false,
      false,
      false,
    ]);
  });
});
