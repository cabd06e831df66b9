// Two guests and the host as domains that share nothing but regions: each writes its own and reads
// the others'. One run of both guests is asked everything, since a boot takes seconds.

import { afterAll, expect, it } from 'vitest';
import { Mailbox, OwnRegion, PeerRegion } from '../../lib/idc/index.js';
import { addressSpace, MemoryObject, type Segment } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { needGuest } from './available.js';
import type { Guest } from './guest.js';
import { placeOf, startRegionGuest } from './region-guest.js';
import { addressOf, checkData, checksum, exchange, lifeIn, offerData } from './region-talk.js';

const LIMIT_MS = 240_000;
const BYTES = 2 ** 26;
const MESSAGES = 10_000;
const HOST = 1;
const GUESTS = [2, 3] as const;
/** In a page of control words that nobody uses; guests try to store there. */
const TARGET = (4096 + 512) / 4;

const cleanups: (() => void)[] = [];
afterAll(() => {
  while (cleanups.length > 0) cleanups.pop()!();
});

/** A guest with every domain's region: its own by a writable descriptor, others to be read. */
function startDomain(
  domain: number,
  regions: ReadonlyMap<number, { writable?: number; readOnly: number }>,
): Promise<Guest> {
  return startRegionGuest({
    name: `domain ${domain}`,
    domain,
    program: ['regions', String(domain), 'talk'],
    descriptors: new Map(
      [...regions].map(([owner, { writable, readOnly }]) => {
        return [owner, owner === domain ? writable! : readOnly] as const;
      }),
    ),
    bytes: BYTES,
    timeoutMs: LIMIT_MS,
  });
}

async function untilGone(peer: PeerRegion): Promise<void> {
  while (peer.state(performance.now()) !== 'gone') {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

function writableMapping(fd: number): string {
  try {
    native.regionClose(native.regionMap(fd, 0, 4096, true));
    return 'mapped';
  } catch (error) {
    return (error as { code: string }).code;
  }
}

it(
  'guests and host exchange verified data by regions that only their owners write',
  async (context) => {
    await needGuest(context);
    // The host's own region, and two that are made for the guests.
    const own = addressSpace().create(BYTES, { kind: 'shared', pageBytes: 4096 });
    cleanups.push(() => own.close());
    expect(own.address).toBe(addressOf(HOST));
    const hostFd = own.descriptor();
    cleanups.push(() => native.fileClose(hostFd));
    const objects = GUESTS.map(() => new MemoryObject(BYTES, 4096));
    const readers = objects.map((object) => object.readOnly());
    cleanups.push(() => readers.forEach((fd) => native.fileClose(fd)));
    cleanups.push(() => objects.forEach((object) => object.close()));
    const region = new OwnRegion(own, { name: 'host' });
    cleanups.push(() => region.close());
    region.keepBeating();

    const descriptors = new Map<number, { writable?: number; readOnly: number }>([
      [HOST, { readOnly: hostFd }],
      ...GUESTS.map((domain, i) => {
        return [domain, { writable: objects[i]!.fd, readOnly: readers[i]! }] as const;
      }),
    ]);
    const [guestA, guestB] = await Promise.all(
      GUESTS.map((domain) => startDomain(domain, descriptors)),
    );
    await using a = guestA!;
    await using b = guestB!;
    await Promise.all([a.ready, b.ready]);

    // QEMU has mapped what it writes: from now on nobody else can, and the host admits it as any
    // sealed memory of a peer.
    const before = objects.map(({ fd }) => writableMapping(fd));
    for (const object of objects) object.seal();
    const after = objects.map(({ fd }) => writableMapping(fd));
    expect([before, after]).toEqual([
      ['mapped', 'mapped'],
      ['EPERM', 'EPERM'],
    ]);
    const segments = GUESTS.map((domain, i): Segment => {
      const claim = { address: addressOf(domain), bytes: BYTES, pageBytes: 4096 };
      const segment = addressSpace().admit(readers[i]!, claim);
      cleanups.push(() => segment.close());
      return segment;
    });

    // Messages and data, all ways at once.
    const lives = await Promise.all(segments.map((segment) => lifeIn(segment)));
    expect(lives.map(({ name }) => name)).toEqual(['guest 2', 'guest 3']);
    const boxes = lives.map((life) => new Mailbox(region, life));
    for (const guest of [a, b]) guest.send(String(MESSAGES));
    expect(await exchange(HOST, boxes, MESSAGES)).toBe(2 * MESSAGES);
    await offerData(region, boxes);
    for (const box of boxes) expect(await checkData(box)).toBe(true);
    const sums = () => [own, ...segments].map(({ address }) => checksum(address + 2 ** 21));
    const sumsBefore = sums();
    expect(await Promise.all([a.message(), b.message()])).toEqual(['talked', 'talked']);
    const shape = (domain: number, kind: string) => [addressOf(domain), BYTES, kind];
    expect(a.results).toMatchObject({
      devices: [HOST, ...GUESTS].map((domain) => {
        return { address: `0000:00:${placeOf(domain)}`, bytes: BYTES };
      }),
      segments: [shape(2, 'imported'), shape(1, 'admitted'), shape(3, 'admitted')],
      names: ['host', 'guest 3'],
    });
    expect(b.results).toMatchObject({
      segments: [shape(3, 'imported'), shape(1, 'admitted'), shape(2, 'admitted')],
      names: ['host', 'guest 2'],
    });

    // What is not theirs they cannot write: the library says so, and behind its back it has no
    // effect.
    for (const { results } of [a, b]) {
      expect(results).toMatchObject({
        messages: 2 * MESSAGES,
        data: [true, true],
        'native stores': [0, 0, 1, 0xffffffff],
        writable: 'IMPORT_FAILED',
        'by a writable descriptor': 'ADMISSION_REFUSED',
        taken: 'ADDRESS_TAKEN',
        raw: [0, 0, 0],
        futex: [2, 0],
      });
    }
    expect(a.results).toMatchObject({
      store: {
        ...{ status: null, signal: 'SIGSEGV', stdout: '47525350\n' },
        stderr: expect.stringMatching(/store to Address 0x3000001000, .* domain 3/) as string,
      },
      mistake: { status: 0, signal: null, stdout: 'REGION_READ_ONLY\n', stderr: '' },
    });
    expect(sums()).toEqual(sumsBefore);
    for (const { u32 } of [own, ...segments]) expect(u32[TARGET]).toBe(0);

    // A life that ends, the next one, and one that is cut off.
    const [, lifeB] = lives;
    expect(lifeB!.state(performance.now())).not.toBe('gone');
    b.send('another life');
    const next = await lifeIn(segments[1]!, lifeB!.generation);
    expect(lifeB!.state(performance.now())).toBe('gone');
    expect(() => boxes[1]!.receive()).toThrow(
      expect.objectContaining({ code: 'PEER_GONE' }) as Error,
    );
    a.send('look');
    expect(await b.message()).toBe('back');
    expect(await a.message()).toBe('watching');
    await b.stop();
    await untilGone(next);
    expect(segments[1]!.lost).toBe(false);
    const { exitCode, stderr, results } = await a.done;
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
    expect(results).toMatchObject({
      'old life': 'PEER_GONE',
      'next life': 'guest 3 again',
      answer: 'and back',
      'before it was gone': 'alive',
      host: 'alive',
    });
    expect(b.results['after']).toBe('you again');
    expect(PeerRegion.read(segments[0]!)).toBeNull(); // closed in good order
  },
  LIMIT_MS + 10_000,
);
