// What domains that are joined by regions alone say to each other in tests: numbered messages of
// many lengths, each known beforehand to whoever reads it, and data in heaps that messages name.

import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises';
import { type Mailbox, type OwnRegion, PeerRegion } from '../../lib/idc/index.js';
import { addressSpace, type Segment } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';

export const DATA_BYTES = 4 * 2 ** 20;
const LETTERS = 'abcdefghijklmnopqrstuvwxyz'.repeat(16);

/** The domain's address: a region lies where its slot begins. */
export function addressOf(domain: number): number {
  return domain * 2 ** 36;
}

function messageOf(from: number, to: number, index: number): string {
  const filler = LETTERS.slice(index % 26, (index % 26) + ((index * 37) % 200));
  return `${from}>${to} ${index} ${filler}`;
}

/** Waits, without a limit of its own, for a life in the region. */
export async function lifeIn(segment: Segment, not = 0): Promise<PeerRegion> {
  for (;;) {
    const peer = PeerRegion.read(segment);
    if (peer !== null && peer.generation !== not) return peer;
    await sleep(2);
  }
}

export async function nextMessage(box: Mailbox): Promise<string> {
  for (;;) {
    const message = box.receive();
    if (message !== null) return message;
    await sleep(2);
  }
}

/** Sends `count` messages by each mailbox and checks as many from each; the number checked. */
export async function exchange(
  domain: number,
  boxes: readonly Mailbox[],
  count: number,
): Promise<number> {
  const sent = boxes.map(() => 0);
  const received = boxes.map(() => 0);
  const total = boxes.length * count;
  const sum = (counts: number[]) => counts.reduce((a, b) => a + b, 0);
  let before = -1;
  while (sum(received) < total || sum(sent) < total) {
    boxes.forEach((box, i) => {
      const peer = box.peer.domain;
      while (sent[i]! < count && box.send(messageOf(domain, peer, sent[i]!))) sent[i]!++;
      for (;;) {
        const message = received[i]! < count ? box.receive() : null;
        if (message === null) break;
        const wanted = messageOf(peer, domain, received[i]!);
        if (message !== wanted) throw new Error(`'${wanted}' came as '${message}'`);
        received[i]!++;
      }
    });
    const moved = sum(received) + sum(sent);
    // Whoever polls for nothing takes processor from guests, which share two with all else.
    await (moved === before ? sleep(1) : turn());
    before = moved;
  }
  return sum(received);
}

/** Fills the start of the heap with what nobody else's has, and tells the peers where it is. */
export async function offerData(own: OwnRegion, boxes: readonly Mailbox[]): Promise<void> {
  const offset = own.heap.address - own.memory.address;
  const words = new Uint32Array(own.memory.u8.buffer, offset, DATA_BYTES / 4);
  let x = own.generation;
  for (let i = 0; i < words.length; i++) words[i] = x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
  const offer = { address: own.heap.address, first: words[0], sum: checksum(own.heap.address) };
  for (const box of boxes) while (!box.send(JSON.stringify(offer))) await sleep(2);
}

/** Whether the data that a peer tells of is what is read here, at the same address. */
export async function checkData(box: Mailbox): Promise<boolean> {
  const offer = JSON.parse(await nextMessage(box)) as {
    address: number;
    first: number;
    sum: number;
  };
  const { address, u32 } = addressSpace().find(offer.address)!;
  const first = u32[(offer.address - address) / 4];
  return first === offer.first && checksum(offer.address) === offer.sum;
}

/** Of the data at an address, by native code. */
export function checksum(address: number): number {
  const out = new Uint32Array(1);
  const entry = Uint32Array.of(address >>> 0, Math.floor(address / 2 ** 32), DATA_BYTES, 0);
  native.crc32cList(entry, 1, out);
  return out[0]!;
}
