// The network side of the interface: its words, and a loop-back device of the test's own that is
// driven by the one Queue, as every network driver will be.

import { describe, expect, expectTypeOf, it } from 'vitest';
import {
  Cpl,
  decodePacket,
  explainStatus,
  Op,
  Queue,
  RECEIVE_FLAGS,
  Req,
  SEND_OFFLOADS,
  Status,
  type Backend,
  type DeviceHandle,
  type NetBackend,
  type NetDevice,
  type NetInfo,
  type NetQueueOptions,
  type QueueDriver,
} from '../../lib/hpdi/index.js';

const HEADROOM = 256;

/** Gives every packet that is sent to the oldest posted buffer, behind some headroom. */
class LoopBackQueue implements QueueDriver {
  readonly counters = { doorbells: 0, polls: 0 };
  private readonly posted: { tag: number; bytes: number }[] = [];
  private readonly done: number[][] = [];

  constructor(private readonly info: NetInfo) {}

  submit(sq: Uint32Array, head: number, tail: number): number {
    for (let index = head; index !== tail; index = (index + 1) | 0) {
      const record = sq.subarray((index & (sq.length / Req.words - 1)) * Req.words);
      const tag = record[Req.tag]!;
      const bytes = record[Req.blocks]!;
      if ((record[Req.op]! & 0xff) === Op.RECEIVE) this.posted.push({ tag, bytes });
      else this.send(tag, bytes, record[Req.aux]!);
    }
    return (tail - head) | 0;
  }

  private send(tag: number, bytes: number, aux: number): void {
    const offloads = aux & 0xffff;
    const refused = (offloads & ~this.info.sendOffloads) !== 0;
    this.done.push([tag, refused ? Status.UNSUPPORTED : Status.OK, 0, 0]);
    const to = refused ? undefined : this.posted.shift();
    if (to === undefined) return;
    const room = to.bytes - HEADROOM;
    let flags: number = RECEIVE_FLAGS.CHECKSUM_GOOD;
    if (bytes > room) flags |= RECEIVE_FLAGS.TRUNCATED;
    if ((offloads & SEND_OFFLOADS.VLAN) !== 0) flags |= RECEIVE_FLAGS.VLAN | (aux & 0xffff_0000);
    const resultLo = Math.min(bytes, room) | (HEADROOM << 20);
    this.done.push([to.tag, Status.OK, resultLo >>> 0, flags >>> 0]);
  }

  poll(cq: Uint32Array, max: number): number {
    const batch = this.done.splice(0, max);
    batch.forEach((words, i) => cq.set(words, i * Cpl.words));
    return batch.length;
  }

  arm(): void {
    this.counters.polls++;
  }

  eventFd(): number {
    return -1;
  }

  release(): boolean {
    return false;
  }

  async drain(): Promise<void> {
    await Promise.resolve();
  }

  async close(): Promise<void> {
    await this.drain();
  }
}

const INFO: NetInfo = {
  mac: '02:00:00:00:00:01',
  mtu: 1500,
  linkBytesPerSecond: 0,
  linkUp: true,
  sendOffloads: SEND_OFFLOADS.CHECKSUM | SEND_OFFLOADS.VLAN,
  receiveFlags: RECEIVE_FLAGS.CHECKSUM_GOOD | RECEIVE_FLAGS.VLAN | RECEIVE_FLAGS.TRUNCATED,
  maxSegments: 0,
  addressAlign: 1,
  receiveBytesMin: 2048,
  queuePairs: 1,
  description: { driver: 'loop-back' },
};

const backend: NetBackend = {
  uri: 'loop-back:',
  scheme: 'loop-back',
  info: INFO,
  openQueue: ({ pair = 0 }: NetQueueOptions) => {
    if (pair < INFO.queuePairs) return new LoopBackQueue(INFO);
    throw new RangeError(`there is no pair ${pair}`);
  },
  share: () => null,
  explainDetail: () => '',
  close: () => Promise.resolve(),
};

function push(queue: Queue, words: readonly number[]): void {
  const at = queue.tail;
  expect(queue.reserve(1)).toBe(1);
  queue.sq.set(words, (at & queue.mask) * Req.words);
}

describe('a network device', () => {
  it('sends and receives by records of the one Queue', () => {
    const queue = new Queue(backend.openQueue({ depth: 8 }), 8);
    push(queue, [Op.RECEIVE, 1, 2048, 0, 0, 0, 4096, 0]);
    push(queue, [Op.RECEIVE, 2, 2048, 0, 0, 0, 8192, 0]);
    push(queue, [Op.SEND, 3, 60, 0, 0, 0, 12288, 0]);
    push(queue, [Op.SEND, 4, 9000, SEND_OFFLOADS.VLAN | (0xabcd << 16), 0, 0, 12288, 0]);
    push(queue, [Op.SEND, 5, 9000, SEND_OFFLOADS.TCP4, 0, 1448 | (54 << 16), 12288, 0]);
    expect(queue.submit()).toBe(5);
    expect(queue.poll(8)).toBe(5);
    const completions = [0, 1, 2, 3, 4].map((i) => [...queue.cq.subarray(i * 4, i * 4 + 4)]);
    const byTag = new Map(completions.map(([tag = 0, ...rest]) => [tag, rest]));
    expect([...byTag.keys()].sort()).toEqual([1, 2, 3, 4, 5]);
    const packets = [1, 2].map((tag) => {
      const [, resultLo = 0, resultHi = 0] = byTag.get(tag)!;
      return decodePacket(resultLo, resultHi);
    });
    expect(packets).toEqual([
      { bytes: 60, offset: 256, flags: RECEIVE_FLAGS.CHECKSUM_GOOD, vlan: 0 },
      {
        bytes: 1792,
        offset: 256,
        flags: RECEIVE_FLAGS.CHECKSUM_GOOD | RECEIVE_FLAGS.TRUNCATED | RECEIVE_FLAGS.VLAN,
        vlan: 0xabcd,
      },
    ]);
    expect(explainStatus(byTag.get(5)![0]!).code).toBe('UNSUPPORTED');
    expect(queue.inFlight).toBe(0);
  });

  it('decodes the largest packet at the farthest place', () => {
    expect(decodePacket(0xffff_ffff, 0xffff_ffff)).toEqual({
      bytes: 2 ** 20 - 1,
      offset: 4095,
      flags: 0xffff,
      vlan: 0xffff,
    });
  });

  it('has types of its own where it differs from a block device', () => {
    expectTypeOf<NetDevice['info']>().toEqualTypeOf<NetInfo>();
    expectTypeOf<ReturnType<NetDevice['queue']>>().toEqualTypeOf<Queue>();
    expectTypeOf<ReturnType<NetDevice['handle']>>().toEqualTypeOf<DeviceHandle<NetInfo>>();
    expectTypeOf<NetBackend>().not.toExtend<Backend>();
  });
});
