// Mailboxes: what one side sends the other reads, whole and in order, and their lives end apart.

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Mailbox, MESSAGE_BYTES_MAX, OwnRegion, PeerRegion } from '../../lib/idc/index.js';
import { makeMemory, makePair, type Side } from './memory.js';

const code = (expected: string) => expect.objectContaining({ code: expected }) as Error;

/** A mailbox of `own` with whoever lives in the other's region. */
function reopen(own: OwnRegion, other: OwnRegion): Mailbox {
  return new Mailbox(own, PeerRegion.read(other.memory)!);
}

/** Everything that is there to be read. */
function drain(box: Mailbox): string[] {
  const messages: string[] = [];
  for (;;) {
    const message = box.receive();
    if (message === null) return messages;
    messages.push(message);
  }
}

describe('messages', () => {
  it('go both ways, whole and in order', () => {
    const [a, b] = makePair();
    expect(a.box.receive()).toBeNull();
    expect([a.box.send('one'), a.box.send(''), a.box.send('drei ü'), b.box.send('back')]).toEqual([
      ...[true, true, true, true],
    ]);
    expect(drain(b.box)).toEqual(['one', '', 'drei ü']);
    expect(drain(a.box)).toEqual(['back']);
    expect(b.box.receive()).toBeNull();
  });

  it('are sent before the peer has opened its side, and read once it has', () => {
    const own = new OwnRegion(makeMemory(1), { name: 'early' });
    const late = new OwnRegion(makeMemory(2), { name: 'late' });
    const early = reopen(own, late);
    expect(early.connected).toBe(false);
    expect(early.send('hello')).toBe(true);
    expect(early.receive()).toBeNull();
    const box = reopen(late, own);
    expect(box.connected).toBe(true);
    expect(box.receive()).toBe('hello');
    box.send('welcome');
    expect(early.receive()).toBe('welcome');
  });

  it('may be of 8 KiB, of any bytes, and no longer', () => {
    const [a, b] = makePair();
    const bytes = Uint8Array.from({ length: MESSAGE_BYTES_MAX }, (_, i) => i * 7);
    for (let i = 0; i < 5; i++) {
      expect(a.box.send(bytes)).toBe(true);
      expect(b.box.receiveBytes()).toEqual(bytes);
    }
    expect(() => a.box.send(new Uint8Array(MESSAGE_BYTES_MAX + 1))).toThrow(RangeError);
    expect(() => a.box.send('ü'.repeat(MESSAGE_BYTES_MAX / 2 + 1))).toThrow(RangeError);
  });

  it('wait when the ring is full, and nothing of them is there', () => {
    const [a, b] = makePair();
    let sent = 0;
    while (a.box.send(`${sent}`.padEnd(996, '.'))) sent++;
    expect(sent).toBe(16); // of 1000 bytes each, with the length
    expect(a.box.send('.'.repeat(1000))).toBe(false);
    expect(a.box.send('short enough')).toBe(true);
    expect(b.box.receive()).toMatch(/^0\.+$/);
    expect(a.box.send(`${sent++}`.padEnd(996, '.'))).toBe(true);
    const rest = drain(b.box).map((message) => message.replaceAll('.', ''));
    expect(rest).toEqual([
      ...Array.from({ length: 15 }, (_, i) => `${i + 1}`),
      'short enough',
      '16',
    ]);
  });

  it('are what a queue would give, whatever their lengths', () => {
    const step = fc.record({
      side: fc.constantFrom(0, 1),
      length: fc.option(fc.oneof(fc.nat(40), fc.nat(MESSAGE_BYTES_MAX))),
      byte: fc.nat(255),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 120 }), (steps) => {
        const pair = makePair();
        const queues: Uint8Array[][] = [[], []];
        for (const { side, length, byte } of steps) {
          if (length === null) {
            expect(pair[side]!.box.receiveBytes()).toEqual(queues[1 - side]!.shift() ?? null);
            continue;
          }
          const data = new Uint8Array(length).map((_, i) => byte + i);
          const room = 16384 - queues[side]!.reduce((sum, { length: n }) => sum + frame(n), 0);
          expect(pair[side]!.box.send(data)).toBe(frame(length) <= room);
          if (frame(length) <= room) queues[side]!.push(data);
        }
      }),
      { numRuns: 60 },
    );
  });

  const frame = (length: number) => 4 + Math.ceil(length / 4) * 4;
});

describe('several peers', () => {
  it('have a mailbox each', () => {
    const owns = [1, 2, 3, 16].map((d) => new OwnRegion(makeMemory(d), { name: `${d}` }));
    const boxes = owns.map((own) =>
      owns.map((other) => (own === other ? null : reopen(own, other))),
    );
    boxes.forEach((row, i) => row.forEach((box, j) => box?.send(`${i} to ${j}`)));
    boxes.forEach((row, i) =>
      row.forEach((box, j) => {
        if (box !== null) expect(drain(box)).toEqual([`${j} to ${i}`]);
      }),
    );
  });

  it('must differ modulo 16', () => {
    const own = new OwnRegion(makeMemory(1), { name: 'own' });
    const [two, eighteen] = [2, 18].map((d) => new OwnRegion(makeMemory(d), { name: `${d}` }));
    reopen(own, two!);
    expect(() => reopen(own, eighteen!)).toThrow(code('TOO_MANY_PEERS'));
    expect(() => reopen(own, own)).toThrow(RangeError);
  });

  it('that share a slot do not read each other', () => {
    // 2 and 18 both take 1 for their peer; 1 has chosen 2.
    const [own, two, eighteen] = [1, 2, 18].map((d) => {
      return new OwnRegion(makeMemory(d), { name: `${d}` });
    });
    const box = reopen(own!, two!);
    box.send('for two');
    const wrong = reopen(eighteen!, own!);
    expect([wrong.connected, wrong.receive()]).toEqual([false, null]);
    expect(reopen(two!, own!).receive()).toBe('for two');
  });
});

describe('the end', () => {
  const ends: [string, (side: Side) => void][] = [
    ['of a mailbox', ({ box }) => box.close()],
    ['of a region', ({ own }) => own.close()],
  ];

  it.each(ends)('%s comes after what was sent', (_what, end) => {
    const [a, b] = makePair();
    a.box.send('last words');
    a.box.send('and more');
    expect(b.box.connected).toBe(true);
    end(a);
    expect(() => b.box.send('nobody listens')).toThrow(code('PEER_GONE'));
    expect(b.box.receive()).toBe('last words');
    expect(b.box.receive()).toBe('and more');
    expect(() => b.box.receive()).toThrow(code('PEER_GONE'));
    expect(() => a.box.send('x')).toThrow(TypeError);
    expect(() => a.box.receive()).toThrow(TypeError);
  });

  it.each(ends)('%s is seen by who never heard of the peer', (_what, end) => {
    const own = new OwnRegion(makeMemory(1), { name: 'own' });
    const other = new OwnRegion(makeMemory(2), { name: 'other' });
    const box = reopen(own, other);
    const theirs = reopen(other, own);
    end({ own: other, box: theirs });
    if (other.closed) expect(() => box.receive()).toThrow(code('PEER_GONE'));
    else expect(box.receive()).toBeNull(); // it closed before it was seen open
  });

  it('is another life: nothing of the old one is read in it', () => {
    const [a, b] = makePair();
    a.box.send('old');
    b.box.send('old too');
    const again = new OwnRegion(a.own.memory, { name: 'again' });
    expect(() => b.box.receive()).toThrow(code('PEER_GONE'));
    expect(() => b.box.send('x')).toThrow(code('PEER_GONE'));
    const box = reopen(again, b.own);
    expect([box.connected, box.receive()]).toEqual([false, null]);
    box.send('new');
    const next = reopen(b.own, again);
    b.box.close(); // late: it takes nothing from the next
    expect(next.receive()).toBe('new');
    next.send('new too');
    expect(box.receive()).toBe('new too');
  });

  it('is for good: a pair of lives has one mailbox', () => {
    const [a, b] = makePair();
    a.box.close();
    expect(() => reopen(a.own, b.own)).toThrow(TypeError);
    b.own.close();
    expect(() => new Mailbox(b.own, PeerRegion.read(a.own.memory)!)).toThrow(TypeError);
  });
});
