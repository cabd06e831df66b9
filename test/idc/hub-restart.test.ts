// A hub that dies, and another in its place: members go on, and come back.

import { readFileSync, rmSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { hubPath, startAll, startHub, startMember, type Actor } from './actors.js';
import { RawMember, type Message } from './raw-member.js';

const raw: RawMember[] = [];

afterEach(() => {
  for (const member of raw.splice(0)) member.close();
});

interface Saved {
  nextGeneration: number;
  members: { slot: number; generation: number; name: string }[];
}

const stateOf = (path: string): Saved => JSON.parse(readFileSync(`${path}.state`, 'utf8')) as Saved;

const listed = (hub: Actor): Promise<string[]> =>
  hub.run((stage) =>
    stage.hub.list().map(({ slot, name, generation, state }) => {
      return `${slot} ${name} ${generation} ${state}`;
    }),
  );

const log = (hub: Actor): Promise<string[]> => hub.run((stage) => stage.notes['log'] as string[]);

async function echoing(b: Actor): Promise<void> {
  await b.run((stage) => {
    stage.domain.listen('echo', (channel) => {
      void (async () => {
        for await (const message of channel) await message.reply(message);
      })().catch(() => {});
    });
  });
}

const ask = (a: Actor, to = 'b'): Promise<number> =>
  a.run(async (stage, name) => {
    stage.channels[name] ??= await stage.domain.connect(name, 'echo');
    const buffer = stage.domain.alloc(64);
    buffer.u32[0] = 99;
    const answer = await stage.channels[name]!.request(buffer, { timeoutMs: 5000 });
    const word = answer.u32[0]!;
    answer.release();
    return word;
  }, to);

const connected = (...members: Actor[]): Promise<unknown> =>
  Promise.all(
    members.map((member) =>
      member.run((stage) => stage.until('the hub', () => stage.domain.hubConnected)),
    ),
  );

describe('a restarted hub', () => {
  it('gets its members back, whose links went on', async () => {
    const { path, hub, a, b } = await startAll('a', 'b');
    await echoing(b);
    expect(await ask(a)).toBe(99);
    await hub.kill();
    await a.run((stage) => stage.until('it knows', () => !stage.domain.hubConnected));
    expect(await ask(a)).toBe(99);
    await expect(a.run((stage) => stage.domain.members())).rejects.toMatchObject({
      code: 'NO_HUB',
    });
    const next = await startHub(path);
    await connected(a, b);
    await expect.poll(() => listed(next)).toEqual(['1 a 1 member', '2 b 2 member']);
    expect(await ask(a)).toBe(99);
    const c = await startMember(path, 'c');
    expect(await c.run((stage) => [stage.domain.slot, stage.domain.generation])).toEqual([3, 3]);
    await echoing(c);
    expect(await ask(a, 'c')).toBe(99);
    expect(await a.run((stage) => stage.domain.links.size)).toBe(2);
    expect(await a.run(async (stage) => (await stage.domain.members()).length)).toBe(3);
    // In order: its members stay, and so do its files.
    await next.run((stage) => stage.hub.close());
    const last = await startHub(path);
    await expect
      .poll(() => listed(last), { timeout: 5000 })
      .toEqual(['1 a 1 member', '2 b 2 member', '3 c 3 member']);
    expect(await ask(a)).toBe(99);
  });

  it('finds out who died while it was away, and frees the slot after the others', async () => {
    const { path, hub, a, b, c } = await startAll('a', 'b', 'c');
    await hub.kill();
    await b.kill();
    a.stop();
    const next = await startHub(path);
    await connected(c);
    const collected = async (): Promise<string[]> => {
      await c.run((stage) => stage.collect());
      return listed(next);
    };
    for (let i = 0; i < 3; i++) {
      expect(await collected()).toEqual(['1 a 1 missing', '2  2 leaving', '3 c 3 member']);
    }
    const d = await startMember(path, 'd');
    expect(await d.run((stage) => stage.domain.slot)).toBe(4);
    a.goOn();
    await expect
      .poll(
        async () => {
          await a.run((stage) => stage.collect());
          return collected();
        },
        { timeout: 10_000 },
      )
      .toEqual(['1 a 1 member', '3 c 3 member', '4 d 4 member']);
    await a.run((stage) => stage.domain.linkTo('d').then(() => {}));
    const e = await startMember(path, 'e');
    expect(await e.run((stage) => stage.domain.slot)).toBe(2);
  });

  it('keeps slot and name of who lives and is not back, and frees those of the dead', async () => {
    const { path, hub, a, b } = await startAll('a', 'b');
    a.stop();
    await hub.kill();
    const next = await startHub(path);
    await connected(b);
    await expect(startMember(path, 'a')).rejects.toMatchObject({ code: 'NAME_TAKEN' });
    expect(await listed(next)).toEqual(['1 a 1 missing', '2 b 2 member']);
    await a.kill();
    await expect
      .poll(async () => {
        await b.run((stage) => stage.collect());
        return listed(next);
      })
      .toEqual(['2 b 2 member']);
    const again = await startMember(path, 'a');
    expect(await again.run((stage) => [stage.domain.slot, stage.domain.generation])).toEqual([
      1, 3,
    ]);
  });

  it('that lost its state knows members by their tokens, and lets them come first', async () => {
    const { path, hub, a, b } = await startAll('a', 'b');
    await echoing(b);
    expect(await ask(a)).toBe(99);
    await hub.kill();
    rmSync(`${path}.state`);
    const next = await startHub(path);
    const c = await startMember(path, 'c'); // waits until a and b had their time
    expect(await c.run((stage) => stage.domain.slot)).toBe(3);
    expect(await listed(next)).toEqual([
      '1 a 1 member',
      '2 b 2 member',
      expect.stringMatching(/^3 c \d{8,} member$/),
    ]);
    expect(await ask(a)).toBe(99);
    await echoing(c);
    expect(await ask(a, 'c')).toBe(99);
    expect(stateOf(path).nextGeneration).toBeGreaterThan(1e8);
  });

  it('that lost its state holds the slot of the dead until the living let go', async () => {
    const { path, hub, a, b } = await startAll('a', 'b');
    await b.run((stage) => {
      stage.domain.listen('keep', (channel) => {
        void channel.receive().then((message) => (stage.notes['kept'] = message));
      });
    });
    await a.run(async (stage) => {
      const channel = await stage.domain.connect('b', 'keep');
      await channel.send(stage.domain.alloc(512));
    });
    await b.run((stage) => stage.until('a message', () => stage.notes['kept'] !== undefined));
    await hub.kill();
    await a.kill();
    rmSync(`${path}.state`);
    const next = await startHub(path);
    const c = await startMember(path, 'c');
    expect(await c.run((stage) => stage.domain.slot)).toBeGreaterThan(2);
    await b.run((stage) => {
      (stage.notes['kept'] as { release(): void }).release();
      delete stage.notes['kept'];
    });
    await expect
      .poll(async () => {
        await b.run((stage) => stage.collect());
        return (await listed(next)).length;
      })
      .toBe(2);
  });

  it('refuses tokens that are not its own, and those of other processes', async () => {
    const path = hubPath();
    const hub = await startHub(path);
    const a = await startMember(path, 'a');
    const mine = new RawMember(path);
    raw.push(mine);
    mine.send({ type: 'join', version: 1, name: 'raw' });
    const { slot, generation, token } = await mine.expect('welcome');
    expect(slot).toBe(2);
    const again = async (changes: Message): Promise<Message> => {
      const member = new RawMember(path);
      raw.push(member);
      const claim = { name: 'raw', slot, generation, token, known: [] };
      member.send({ type: 'rejoin', version: 1, ...claim, ...changes });
      return (await member.receive()) ?? {};
    };
    const wrong = [
      { token: '' },
      { token: 'x'.repeat(64) },
      { slot: 1 },
      { generation: 1 },
      { name: 'a' },
    ];
    for (const changes of wrong) {
      expect(await again(changes)).toMatchObject({ type: 'refused', code: 'TOKEN_REFUSED' });
    }
    for (const known of [undefined, 'all', [[1]], [[0, 1]], [[1, 2, 3]], [['a', 1]]]) {
      expect(await again({ known })).toEqual({});
    }
    // The same process may: its first connection ends.
    expect(await again({})).toMatchObject({ type: 'welcome', slot: 2 });
    for (;;) if ((await mine.receive()) === null) break;
    // Another may not, with whatever token it got hold of.
    const theft = a.run(
      async (stage, at, claim) => {
        const fd = stage.native.unixConnect(at);
        stage.native.unixSend(fd, Buffer.from(JSON.stringify(claim)), []);
        const buffer = new Uint8Array(4096);
        for (;;) {
          const got = stage.native.unixReceive(fd, buffer);
          if (got === null) await stage.sleep(2);
          else return Buffer.from(buffer.subarray(0, got.bytes)).toString();
        }
      },
      path,
      { type: 'rejoin', version: 1, name: 'raw', slot, generation, token, known: [] },
    );
    expect(await theft).toContain('SLOT_LOST');
    expect((await log(hub)).length).toBeGreaterThan(0);
    // Nor anybody, once the slot is given up.
    for (const member of raw) member.close();
    await expect.poll(async () => (await listed(hub))[1]).toMatch(/leaving|undefined/);
    expect(await again({})).toMatchObject({ type: 'refused', code: 'SLOT_LOST' });
  });

  it('with another key is no hub of its members', async () => {
    const { path, hub, a } = await startAll('a');
    await a.run((stage) => {
      stage.notes['warnings'] = [];
      process.on('warning', (warning) => {
        (stage.notes['warnings'] as unknown[]).push((warning as { code?: string }).code);
      });
    });
    await hub.kill();
    rmSync(`${path}.state`);
    rmSync(`${path}.key`);
    const next = await startHub(path);
    await a.run((stage) =>
      stage.until('the refusal', () => (stage.notes['warnings'] as unknown[]).length > 0),
    );
    expect(await a.run((stage) => stage.notes['warnings'])).toEqual(['PENSTOCK_HUB_REFUSED']);
    expect(await listed(next)).toEqual([]);
  });
});
