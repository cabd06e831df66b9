// A region's header, and how it shows who lives.

import { describe, expect, it } from 'vitest';
import { OwnRegion, PeerRegion } from '../../lib/idc/index.js';
import { Header, REGION_HEADER } from '../../lib/idc/region.js';
import { decode } from '../../lib/wire/index.js';
import { makeMemory, REGION_BYTES } from './memory.js';

const SLOT = 2 ** 36;

const code = (expected: string) => expect.objectContaining({ code: expected }) as Error;

describe('the header', () => {
  it('says who the owner is', () => {
    const memory = makeMemory(3);
    const own = new OwnRegion(memory, { name: 'Lager Süd', features: 5 });
    expect(own).toMatchObject({ domain: 3, closed: false });
    expect(own.heap).toEqual({
      address: 3 * SLOT + 2 ** 21,
      bytes: REGION_BYTES - 2 ** 21,
    });
    const peer = PeerRegion.read(memory)!;
    const { generation, heap } = own;
    expect(peer).toMatchObject({ domain: 3, name: 'Lager Süd', features: 5, generation, heap });
    const shown = decode(REGION_HEADER, Uint8Array.from(memory.u8.subarray(0, 192)));
    expect(shown).toMatchObject({ magic: 0x47525350, version: 1, bytes: REGION_BYTES, generation });
    expect(Buffer.from(memory.u8.subarray(0, 4)).toString()).toBe('PSRG');
  });

  it('leaves the heap as it was', () => {
    const memory = makeMemory(3);
    memory.u8.fill(9, 2 ** 21);
    new OwnRegion(memory, { name: 'x' });
    expect(memory.u8.subarray(2 ** 21).every((byte) => byte === 9)).toBe(true);
  });

  it('is of a region that lies where its slot begins, in whole granules', () => {
    const memory = makeMemory(3);
    const name = 'x';
    const wrong = [
      { ...memory, address: 3 * SLOT + 2 ** 21 },
      { ...memory, address: 0 },
      { ...memory, address: 256 * SLOT },
      { ...memory, bytes: 2 ** 21 },
      { ...memory, bytes: REGION_BYTES + 4096 },
      { ...memory, u8: memory.u8.subarray(4096) },
    ];
    for (const bad of wrong) {
      expect(() => new OwnRegion(bad, { name })).toThrow(RangeError);
      expect(() => PeerRegion.read(bad)).toThrow(RangeError);
    }
    for (const bad of ['', 'x'.repeat(65), 'ü'.repeat(33), 'a\u001b[2J', 'a\0b', '\ud800']) {
      expect(() => new OwnRegion(memory, { name: bad })).toThrow(RangeError);
    }
  });

  it('is not written to memory that is read-only, or that drops what is stored', () => {
    const memory = makeMemory(3);
    expect(() => new OwnRegion({ ...memory, writable: false }, { name: 'x' })).toThrow(
      code('REGION_READ_ONLY'),
    );
    expect(memory.u32[0]).toBe(0);
    // As QEMU does: what is stored is not there when it is read.
    const deaf = new Proxy(memory.u32, {
      set: () => true,
      get: (target, name) => Reflect.get(target, name, target) as unknown,
    });
    expect(() => new OwnRegion({ ...memory, u32: deaf }, { name: 'x' })).toThrow(
      code('REGION_READ_ONLY'),
    );
  });
});

describe('reading a header', () => {
  it('finds nobody where nobody is, or is just beginning', () => {
    const memory = makeMemory(2);
    expect(PeerRegion.read(memory)).toBeNull();
    const own = new OwnRegion(memory, { name: 'x' });
    memory.u32[Header.generation] = 0;
    expect(PeerRegion.read(memory)).toBeNull();
    memory.u32[Header.generation] = own.generation;
    own.close();
    expect(PeerRegion.read(memory)).toBeNull();
    expect(PeerRegion.read(new OwnRegion(memory, { name: 'y' }).memory)?.name).toBe('y');
  });

  it.each([
    ['magic', Header.magic, 1],
    ['domain', Header.domain, 3],
    ['size', Header.bytes, 2 * REGION_BYTES],
    ['place of mailboxes', Header.mailboxes, REGION_BYTES],
    ['place of rings', Header.rings, 0xfffffffc],
    ['heap at the header', Header.heap, 0],
    ['heap outside', Header.heap, 0xffe00000],
    ['heap misaligned', Header.heap, 2 ** 21 + 8],
    ['heap too large', Header.heapBytes, REGION_BYTES],
    ['heap far too large', Header.heapBytes, 0xffffffff],
    ['name without UTF-8', Header.name, 0xffffffff],
    ['name that speaks to a terminal', Header.name, 0x4a325b1b],
    ['name of nothing', Header.name, 0],
  ])('refuses another %s', (_what, word, value) => {
    const memory = makeMemory(2);
    new OwnRegion(memory, { name: 'x' });
    memory.u32[word] = value;
    expect(() => PeerRegion.read(memory)).toThrow(code('PEER_MISBEHAVED'));
  });

  it('tells another version from nonsense', () => {
    const memory = makeMemory(2);
    new OwnRegion(memory, { name: 'x' });
    memory.u32[Header.version] = 2;
    expect(() => PeerRegion.read(memory)).toThrow(code('REGION_VERSION'));
  });

  it('takes what memory another domain lies in for who it is', () => {
    const memory = makeMemory(2);
    new OwnRegion(memory, { name: 'x' });
    expect(() => PeerRegion.read({ ...memory, address: 5 * SLOT })).toThrow(
      code('PEER_MISBEHAVED'),
    );
  });
});

describe('liveness', () => {
  it('is seen by heartbeats, and lost after three seconds without one', () => {
    const own = new OwnRegion(makeMemory(2), { name: 'x' });
    const peer = PeerRegion.read(own.memory)!;
    expect(peer.state(0)).toBe('unseen');
    own.beat();
    expect(peer.state(100)).toBe('alive');
    for (let now = 200; now < 3100; now += 100) expect(peer.state(now)).toBe('alive');
    expect(peer.state(3100)).toBe('gone');
  });

  it('is not lost while it beats', () => {
    const own = new OwnRegion(makeMemory(2), { name: 'x' });
    own.memory.u32[Header.heartbeat] = 0xffffffff;
    const peer = PeerRegion.read(own.memory)!;
    for (let now = 0; now < 60_000; now += 400) {
      if (now % 2400 === 0) own.beat();
      expect(peer.state(now)).toBe('alive');
    }
  });

  it('is not given back: who was gone comes as another life', () => {
    const memory = makeMemory(2);
    const own = new OwnRegion(memory, { name: 'x' });
    const peer = PeerRegion.read(memory)!;
    for (let now = 0; now <= 3000; now += 500) peer.state(now);
    own.beat();
    expect(peer.state(3100)).toBe('gone');
    const again = new OwnRegion(memory, { name: 'x' });
    again.beat();
    expect(peer.state(3200)).toBe('gone');
    const next = PeerRegion.read(memory)!;
    next.state(0);
    again.beat();
    expect(next.state(100)).toBe('alive');
    expect(next.generation).not.toBe(peer.generation);
  });

  it('is not held against others by who was stopped itself', () => {
    const own = new OwnRegion(makeMemory(2), { name: 'x' });
    const peer = PeerRegion.read(own.memory)!;
    own.beat();
    peer.state(0);
    expect(peer.state(1_000_000)).toBe('alive'); // one look, however late
    for (let i = 1; i < 5; i++) expect(peer.state(1_000_000 + i * 10_000)).toBe('alive');
    expect(peer.state(1_050_000)).toBe('gone');
    const clockWentBack = PeerRegion.read(own.memory)!;
    clockWentBack.state(1000);
    expect(clockWentBack.state(0)).toBe('unseen');
  });

  it('ends at once with a close, or with another life', () => {
    const memory = makeMemory(2);
    const own = new OwnRegion(memory, { name: 'x' });
    const peer = PeerRegion.read(memory)!;
    own.close();
    own.close();
    expect([peer.hasEnded, peer.isOver, peer.state(0)]).toEqual([true, false, 'gone']);
    const next = new OwnRegion(memory, { name: 'y' });
    expect(peer.isOver).toBe(true);
    const second = PeerRegion.read(memory)!;
    new OwnRegion(memory, { name: 'z' });
    expect([next.closed, second.isOver, second.state(0)]).toEqual([false, true, 'gone']);
  });

  it('is kept up by the event loop, and does not keep it up', async () => {
    const own = new OwnRegion(makeMemory(2), { name: 'x' });
    own.keepBeating();
    own.keepBeating();
    const before = own.memory.u32[Header.heartbeat]!;
    while (own.memory.u32[Header.heartbeat] === before) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    own.close();
    expect(process.getActiveResourcesInfo()).not.toContain('Interval');
  });
});
