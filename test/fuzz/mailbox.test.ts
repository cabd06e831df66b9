// A mailbox against a peer that writes whatever it likes into its own region, which is all that it
// can write: nothing that it does makes the other side read or write out of place, throw anything
// but what it is meant to, or give messages that are too long.

import fc from 'fast-check';
import { expect, it } from 'vitest';
import { PenstockError } from '../../lib/errors.js';
import { MESSAGE_BYTES_MAX, PeerRegion } from '../../lib/idc/index.js';
import { makePair } from '../idc/memory.js';

const START = 2 ** 32 - 16384;
/** In words: header, control of the slot for domain 1, and its ring. */
const GENERATION = 32;
const CONTROL = (4096 + 128) / 4;
const RING = (8192 + 16384) / 4;
/** Of the victim's region, what it may change: the control words and ring of its slot for 2. */
const OWN_CONTROL: [number, number] = [4096 + 2 * 128, 4096 + 3 * 128];
const OWN_RING: [number, number] = [8192 + 2 * 16384, 8192 + 3 * 16384];

const value = fc.oneof(
  fc.constantFrom(0, 1, 2, 3, 4, START, START + 4, START + 8, START - 4, 0xffffffff, 16384, 8192),
  fc.nat(40),
  fc.integer({ min: 0, max: 0xffffffff }),
);
const place = fc.oneof(
  fc.constantFrom(CONTROL, CONTROL + 1, CONTROL + 2, CONTROL + 16, GENERATION, GENERATION + 2),
  fc.constantFrom(RING, RING, RING, RING + 1, RING + 2),
  fc.nat(RING + 4096),
);
const step = fc.oneof(
  { weight: 4, arbitrary: fc.record({ poke: place, value }) },
  { weight: 2, arbitrary: fc.record({ tail: fc.nat(20000), length: value }) },
  { weight: 3, arbitrary: fc.record({ send: fc.nat(MESSAGE_BYTES_MAX) }) },
  { weight: 4, arbitrary: fc.constant('receive' as const) },
  { weight: 1, arbitrary: fc.constant('text' as const) },
  { weight: 1, arbitrary: fc.constant('honest' as const) },
);

/** The bytes that neither range holds. */
function outside(bytes: Uint8Array): Buffer {
  const upTo = bytes.subarray(0, 300_000);
  return Buffer.concat([
    upTo.subarray(0, OWN_CONTROL[0]),
    upTo.subarray(OWN_CONTROL[1], OWN_RING[0]),
    upTo.subarray(OWN_RING[1]),
  ]);
}

it('does no harm and is named for what it is', () => {
  const outcomes = { messages: 0, misbehaved: 0, gone: 0 };
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const [victim, peer] = makePair();
      const before = outside(victim.own.memory.u8);
      let dead: string | undefined;
      const attempt = (call: () => void): void => {
        const seen = Buffer.from(peer.own.memory.u8.subarray(0, 300_000));
        try {
          call();
          expect(dead).toBeUndefined();
        } catch (error) {
          if (!(error instanceof PenstockError)) throw error;
          expect(error.code).toMatch(/^PEER_(MISBEHAVED|GONE)$/);
          if (dead !== undefined) expect(error.code).toBe(dead);
          if (error.code === 'PEER_MISBEHAVED') dead = error.code;
          outcomes[error.code === 'PEER_GONE' ? 'gone' : 'misbehaved']++;
        }
        expect(seen.equals(peer.own.memory.u8.subarray(0, 300_000))).toBe(true);
      };
      const words = peer.own.memory.u32;
      for (const one of steps) {
        if (one === 'honest') {
          try {
            peer.box.send('an honest word');
          } catch {
            // It sees what was poked into its own region as the victim's doing, or as its own end.
          }
        } else if (one === 'text') {
          attempt(() => victim.box.receive());
        } else if (one === 'receive') {
          attempt(() => {
            const message = victim.box.receiveBytes();
            if (message === null) return;
            outcomes.messages++;
            expect(message.length).toBeLessThanOrEqual(MESSAGE_BYTES_MAX);
          });
        } else if ('poke' in one) {
          words[one.poke] = one.value;
        } else if ('tail' in one) {
          words[RING] = one.length;
          words[CONTROL + 2] = START + one.tail;
        } else {
          attempt(() => victim.box.send(new Uint8Array(one.send)));
        }
      }
      expect(outside(victim.own.memory.u8).equals(before)).toBe(true);
    }),
    { numRuns: 400 },
  );
  // The attack reaches all of it.
  expect(outcomes.messages).toBeGreaterThan(20);
  expect(outcomes.misbehaved).toBeGreaterThan(20);
  expect(outcomes.gone).toBeGreaterThan(20);
});

it('has a header that is read as it is, or refused', () => {
  const [{ own }] = makePair();
  const sound = own.memory.u32.slice(0, 48);
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.nat(47), value), { maxLength: 6 }), (pokes) => {
      own.memory.u32.set(sound);
      for (const [word, to] of pokes) own.memory.u32[word] = to;
      try {
        const peer = PeerRegion.read(own.memory);
        if (peer === null) return;
        const { heap, memory, name } = peer;
        expect(heap.address).toBeGreaterThanOrEqual(memory.address + 2 ** 21);
        expect(heap.address + heap.bytes).toBeLessThanOrEqual(memory.address + memory.bytes);
        expect(name).toMatch(/^[^\p{Cc}]+$/u);
      } catch (error) {
        if (!(error instanceof PenstockError)) throw error;
        expect(error.code).toMatch(/^(PEER_MISBEHAVED|REGION_VERSION)$/);
      }
    }),
    { numRuns: 2000 },
  );
});
