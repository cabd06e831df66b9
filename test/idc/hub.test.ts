// The hub: who is admitted, which slot he gets, and whom he is introduced to. Real processes.

import { existsSync, mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { dirname } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { Hub } from '../../lib/idc/index.js';
import { Actor, hubPath, startAll, startHub, startMember } from './actors.js';
import { RawMember } from './raw-member.js';

const isRoot = process.getuid?.() === 0;
const raw: RawMember[] = [];
const hubs: Hub[] = [];

afterEach(() => {
  for (const member of raw.splice(0)) member.close();
  for (const hub of hubs.splice(0)) hub.close();
});

function listen(path: string, options: object = {}): Hub {
  const hub = Hub.listen(path, options);
  hubs.push(hub);
  return hub;
}

async function join(path: string, name: string, more: object = {}): Promise<RawMember> {
  const member = await RawMember.join(path, name, more as Record<string, unknown>);
  raw.push(member);
  return member;
}

async function placed(path: string, name: string, more: object = {}): Promise<number> {
  return (await (await join(path, name, more)).expect('welcome'))['slot'] as number;
}

async function refused(path: string, name: string, more: object = {}): Promise<unknown> {
  return (await (await join(path, name, more)).expect('refused'))['code'];
}

async function listed(hub: Actor): Promise<string[]> {
  return hub.run((stage) =>
    stage.hub.list().map(({ slot, name, state }) => `${slot} ${name} ${state}`),
  );
}

describe('a hub', () => {
  it('makes its socket for its user alone, and others as asked', () => {
    const path = hubPath();
    listen(path);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(statSync(`${path}.key`).mode & 0o777).toBe(0o600);
    expect(statSync(`${path}.state`).mode & 0o777).toBe(0o600);
    const open = hubPath();
    listen(open, { mode: 0o666 });
    expect(statSync(open).mode & 0o777).toBe(0o666);
  });

  it('takes no path where another hub is, by whatever spelling', () => {
    const path = hubPath();
    listen(path);
    expect(() => listen(path)).toThrowError(expect.objectContaining({ code: 'HUB_BUSY' }));
    const other = `${dirname(path)}/../${path.split('/').slice(-2).join('/')}`;
    expect(() => listen(other)).toThrowError(expect.objectContaining({ code: 'HUB_BUSY' }));
  });

  it('leaves another program and its files alone', async () => {
    const path = hubPath();
    const server = createServer().listen(path);
    await new Promise((resolve) => server.once('listening', resolve));
    expect(() => listen(path)).toThrowError(expect.objectContaining({ code: 'HUB_BUSY' }));
    expect(existsSync(path)).toBe(true);
    await new Promise((resolve) => server.close(resolve));
    const file = hubPath();
    writeFileSync(file, 'mine');
    expect(() => listen(file)).toThrowError(expect.objectContaining({ code: 'NOT_A_SOCKET' }));
    mkdirSync(`${file}.d`);
    expect(() => listen(`${file}.d`)).toThrowError(
      expect.objectContaining({ code: 'NOT_A_SOCKET' }),
    );
    expect(() => listen(`${file}/no/such`)).toThrowError(
      expect.objectContaining({ code: 'HUB_FAILED' }),
    );
  });

  it('takes the place of a dead one', async () => {
    const path = hubPath();
    const dead = await startHub(path);
    await dead.kill();
    expect(existsSync(path)).toBe(true);
    listen(path);
    expect(await placed(path, 'a')).toBe(1);
  });

  it.each(['{', '[]', '{"version":2}', '{"version":1,"nextGeneration":1,"members":[{}]}'])(
    'does not start on a state that is %s',
    (text) => {
      const path = hubPath();
      writeFileSync(`${path}.state`, text);
      expect(() => listen(path)).toThrowError(expect.objectContaining({ code: 'HUB_STATE_BAD' }));
      expect(existsSync(path)).toBe(false);
    },
  );

  it('removes its files when nobody is left', async () => {
    const path = hubPath();
    const hub = listen(path);
    const member = await join(path, 'a');
    await member.expect('welcome');
    member.send({ type: 'leave' });
    expect(await member.receive()).toBeNull();
    hub.close();
    expect(readdirSync(dirname(path))).toEqual([]);
  });
});

describe('admission', () => {
  it('gives the lowest free slot, and generations that never repeat', async () => {
    const path = hubPath();
    const hub = listen(path);
    for (const [index, name] of ['a', 'b', 'c'].entries()) {
      expect(await placed(path, name)).toBe(index + 1);
    }
    raw[1]!.close();
    await expect.poll(() => hub.list().map(({ name }) => name)).toEqual(['a', '', 'c']);
    expect(await placed(path, 'd')).toBe(4);
    for (const at of [0, 2]) raw[at]!.send({ type: 'released', slot: 2, generation: 2 });
    await expect.poll(() => hub.list().map(({ name }) => name)).toEqual(['a', 'c', 'd']);
    const member = await join(path, 'e');
    expect(await member.expect('welcome')).toMatchObject({ slot: 2, generation: 5 });
  });

  it('refuses a name that is taken, and takes it again when it is free', async () => {
    const path = hubPath();
    const hub = listen(path);
    await placed(path, 'a');
    expect(await refused(path, 'a')).toBe('NAME_TAKEN');
    raw[0]!.close();
    await expect.poll(() => hub.list()).toEqual([]);
    expect(await placed(path, 'a')).toBe(1);
  });

  it.each(['', '-a', 'a b', 'a/b', 'é', 'x'.repeat(65)])('refuses the name %j', async (name) => {
    const path = hubPath();
    listen(path);
    expect(await (await join(path, name)).receive()).toBeNull();
    const actor = await Actor.start();
    const joined = actor.run(
      async (stage, at, called) => {
        await stage.idc.joinDomain(at, { name: called });
      },
      path,
      name,
    );
    await expect(joined).rejects.toMatchObject({ code: 'BAD_NAME' });
  });

  it('refuses another version', async () => {
    const path = hubPath();
    listen(path);
    expect(await refused(path, 'a', { version: 2 })).toBe('VERSION_MISMATCH');
  });

  it('is full with 255 members, which fit into a list', async () => {
    const path = hubPath();
    const hub = listen(path);
    const name = (i: number): string => `${'n'.repeat(58)}-${i}`;
    // They share with nobody, so that nobody is introduced to hundreds.
    for (let i = 1; i <= 255; i++) expect(await placed(path, name(i), { names: [] })).toBe(i);
    expect(await refused(path, 'more')).toBe('HUB_FULL');
    const asking = await join(path, 'more');
    asking.send({ type: 'list' });
    const parts = [];
    for (let more = true; more;) {
      const part = await asking.expect('members');
      parts.push(...(part['members'] as { slot: number }[]));
      more = part['more'] === true;
    }
    expect(parts.map(({ slot }) => slot)).toEqual(Array.from({ length: 255 }, (_, i) => i + 1));
    raw[99]!.close();
    await expect.poll(() => hub.list().length).toBe(254);
    expect(await placed(path, 'more')).toBe(100);
  });

  it.runIf(isRoot)('goes by the mode of the socket and by who may join', async () => {
    const path = hubPath();
    const { chmodSync } = await import('node:fs');
    chmodSync(dirname(path), 0o755);
    const hub = await startHub(path);
    const stranger = await Actor.start({ uid: 12345, gid: 12345 });
    const joining = (who: Actor, at: string): Promise<number> =>
      who.run(async (stage, to) => {
        stage.domain = await stage.idc.joinDomain(to, { name: 'stranger' });
        return stage.domain.slot;
      }, at);
    await expect(joining(stranger, path)).rejects.toMatchObject({ code: 'PERMISSION_DENIED' });
    await hub.kill();
    const open = hubPath();
    chmodSync(dirname(open), 0o755);
    await startHub(open, { mode: 0o666, allow: { uids: [0] } });
    await expect(joining(stranger, open)).rejects.toMatchObject({ code: 'PERMISSION_DENIED' });
    expect(await placed(open, 'root')).toBe(1);
    const groups = hubPath();
    chmodSync(dirname(groups), 0o755);
    await startHub(groups, { mode: 0o666, allow: { uids: [0], gids: [12345] } });
    expect(await joining(stranger, groups)).toBe(1);
  });

  it('says where no hub is', async () => {
    const actor = await Actor.start();
    const path = hubPath();
    const joining = (): Promise<void> =>
      actor.run(async (stage, at) => {
        await stage.idc.joinDomain(at, { name: 'a', timeoutMs: 300 });
      }, path);
    await expect(joining()).rejects.toMatchObject({ code: 'NO_HUB' });
    const hub = await startHub(path);
    hub.stop();
    await expect(joining()).rejects.toMatchObject({ code: 'HUB_SILENT' });
    hub.goOn();
    // A process that failed to join may try again.
    await expect(joining()).resolves.toBeUndefined();
    await expect(joining()).rejects.toMatchObject({ code: 'DOMAIN_JOINED' });
  });

  it('comes before the first allocation', async () => {
    const path = hubPath();
    await startHub(path);
    const actor = await Actor.start();
    const joined = actor.run(async (stage, at) => {
      stage.addressSpace().create(4096);
      await stage.idc.joinDomain(at, { name: 'a' });
    }, path);
    await expect(joined).rejects.toMatchObject({ code: 'ADDRESS_SPACE_IN_USE' });
  });
});

describe('callers who are no members', () => {
  it('harm nobody, and leave nothing behind', async () => {
    const { path, hub, a, b } = await startAll('a', 'b');
    const before = await hub.run((stage) => stage.fds().sort());
    const callers: RawMember[] = [];
    const call = (send: (member: RawMember) => void): RawMember => {
      const member = new RawMember(path);
      send(member);
      callers.push(member);
      return member;
    };
    const fds = [0, 1, 2].map(() => new RawMember(path).fd);
    const ended = [
      call((member) => member.send('hello')),
      call((member) => member.send('[1]')),
      call((member) => member.send('null')),
      call((member) => member.send({ type: 'nonsense' })),
      call((member) => member.send({ type: 'leave' })),
      call((member) => member.send({ type: 'join', version: 1, name: 7 })),
      call((member) => member.send({ type: 'join', version: 1, name: 'x', names: 'all' })),
      call((member) => member.send({ type: 'join', version: 1, name: 'x', uids: [-1] })),
      call((member) => member.send({ type: 'rejoin', version: 1, name: 'x', slot: 0 })),
      call((member) => member.send({ type: 'rejoin', version: 1, name: 'x', slot: 1 })),
      call((member) => member.send(Buffer.alloc(40_000, ' ').toString(), fds)),
      call((member) => member.send('{', fds)),
    ];
    for (const member of ended) expect(await member.receive()).toBeNull();
    const silent = call(() => {});
    const asking = call((member) => member.send({ type: 'list' }, fds));
    expect(((await asking.expect('members'))['members'] as unknown[]).length).toBe(2);
    // More strangers than there is room for: the oldest go.
    const many = Array.from({ length: 200 }, () => call(() => {}));
    expect(await silent.receive()).toBeNull();
    expect(await many[0]!.receive()).toBeNull();
    const { native } = await import('../../lib/native.js');
    for (const fd of fds) native.fileClose(fd);
    for (const member of callers) member.close();
    await expect
      .poll(() => hub.run((stage) => stage.fds().sort()), { timeout: 5000 })
      .toEqual(before);
    expect(await listed(hub)).toEqual(['1 a member', '2 b member']);
    expect(await a.run((stage) => stage.domain.peers.length)).toBe(1);
    expect(await b.run((stage) => stage.domain.hubConnected)).toBe(true);
  });

  it('who join and then talk nonsense are cut off, and only they', async () => {
    const { path, hub, a } = await startAll('a');
    for (const nonsense of [
      '{',
      { type: 'released', slot: 'x' },
      { type: 'released', slot: 1, generation: 0 },
      { type: 'welcome' },
      { type: 'join', version: 1, name: 'again' },
    ]) {
      const member = await join(path, 'bad');
      await member.expect('welcome');
      member.send(nonsense);
      for (;;) if ((await member.receive()) === null) break;
      await a.run(async (stage) => {
        await stage.until('the link is over', () => {
          return [...stage.domain.links.values()].every(({ error }) => error !== null);
        });
      });
    }
    expect((await listed(hub))[0]).toBe('1 a member');
    // Anybody may say that he holds nothing of a slot.
    const member = await join(path, 'good');
    await member.expect('welcome');
    member.send({ type: 'released', slot: 200, generation: 1 });
    member.send({ type: 'list' });
    await member.expect('members');
  });
});

describe('introductions', () => {
  it('go to those who share with each other', async () => {
    const path = hubPath();
    await startHub(path);
    const uid = process.getuid!();
    const a = await startMember(path, 'a', { share: { names: ['b', 'd'] } });
    const b = await startMember(path, 'b', { share: { uids: [uid] } });
    const c = await startMember(path, 'c', { share: { uids: [uid + 1] } });
    const d = await startMember(path, 'd');
    const peers = (who: Actor): Promise<string[]> =>
      who.run(async (stage) => {
        await stage.domain.linkTo('d', 100).catch(() => {});
        return stage.domain.peers.map(({ name }) => name).sort();
      });
    expect(await peers(a)).toEqual(['b', 'd']);
    expect(await peers(b)).toEqual(['a', 'd']);
    expect(await peers(c)).toEqual([]);
    expect(await peers(d)).toEqual(['a', 'b']);
    const failed = c.run(async (stage) => {
      await stage.domain.connect('a', 'x', { timeoutMs: 50 });
    });
    await expect(failed).rejects.toMatchObject({ code: 'TIMED_OUT' });
  });

  it('bring all memory there is, and what comes before an address in it is seen', async () => {
    const { path, a } = await startAll('a');
    await a.run((stage) => {
      stage.buffers.push(stage.domain.alloc(3 * 2 ** 20), stage.domain.alloc(64));
      stage.buffers[0]!.u32.fill(0xabcd);
      stage.domain.listen('more', (channel) => {
        void (async () => {
          for await (const message of channel) {
            // A fresh segment for each answer.
            const buffer = stage.domain.alloc(message.u32[0]!);
            buffer.u32[0] = message.u32[0]!;
            buffer.u32[buffer.u32.length - 1] = 7;
            message.release();
            await channel.send(buffer);
          }
        })();
      });
    });
    const b = await startMember(path, 'b');
    const seen = await b.run(async (stage) => {
      const channel = await stage.domain.connect('a', 'more');
      const link = await stage.domain.linkTo('a');
      const sizes = [];
      for (const bytes of [2 ** 20, 2 ** 21, 2 ** 22, 2 ** 23]) {
        const ask = stage.domain.alloc(4);
        ask.u32[0] = bytes;
        await channel.send(ask);
        const answer = (await channel.receive())!;
        sizes.push([answer.u32[0], answer.u32[answer.u32.length - 1]]);
        stage.messages.push(answer); // kept, so that the next one needs another segment
      }
      return { mapped: link.mappedBytes, sizes };
    });
    expect(seen.sizes).toEqual([2 ** 20, 2 ** 21, 2 ** 22, 2 ** 23].map((bytes) => [bytes, 7]));
    expect(seen.mapped).toBeGreaterThan(2 ** 20 * 18);
  });
});

describe('a slot', () => {
  it('is not given away while somebody holds memory of it', async () => {
    const { path, hub, a, b, c } = await startAll('a', 'b', 'c');
    await b.run(async (stage) => {
      stage.domain.listen('take', (channel) => {
        void channel.receive().then((message) => stage.messages.push(message!));
      });
    });
    await a.run(async (stage) => {
      const channel = await stage.domain.connect('b', 'take');
      const buffer = stage.domain.alloc(4096);
      buffer.u32.fill(0x1234_5678);
      await channel.send(buffer);
    });
    await b.run((stage) => stage.until('the message', () => stage.messages.length === 1));
    await a.kill();
    const collected = async (): Promise<string[]> => {
      for (const member of [b, c]) await member.run((stage) => stage.collect());
      return listed(hub);
    };
    await expect.poll(() => listed(hub)).toEqual(['1  leaving', '2 b member', '3 c member']);
    for (let i = 0; i < 5; i++) expect((await collected())[0]).toBe('1  leaving');
    expect(await startMember(path, 'd').then((d) => d.run((stage) => stage.domain.slot))).toBe(4);
    const words = await b.run((stage) => {
      const { u32 } = stage.messages[0]!;
      const good = Array.from(u32 as unknown as Uint32Array).every((w) => w === 0x1234_5678);
      stage.messages.pop()!.release();
      return good;
    });
    expect(words).toBe(true);
    await expect.poll(collected).toEqual(['2 b member', '3 c member', '4 d member']);
    expect(await startMember(path, 'e').then((e) => e.run((stage) => stage.domain.slot))).toBe(1);
  });

  it('comes free when its member leaves and the others have let go', async () => {
    const { hub, a, b } = await startAll('a', 'b');
    await b.run((stage) => stage.domain.close());
    await a.run((stage) => stage.until('the link', () => stage.domain.links.size === 0));
    await expect
      .poll(async () => {
        await a.run((stage) => stage.collect());
        return listed(hub);
      })
      .toEqual(['1 a member']);
    expect(await b.run((stage) => stage.idc.currentDomain())).toBeNull();
  });
});
