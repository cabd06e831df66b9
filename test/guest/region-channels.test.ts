// Channels and loans between two guests and the host, which share nothing but regions: what one
// guest sends, the other passes on to the host, which reads it where it lies.

import { afterAll, expect, it } from 'vitest';
import { joinRegions } from '../../lib/idc/index.js';
import { addressSpace, MemoryObject } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { needGuest } from './available.js';
import { BUFFER_BYTES, firstWrong } from './region-buffers.js';
import { startRegionGuest } from './region-guest.js';
import { addressOf } from './region-talk.js';

const LIMIT_MS = 240_000;
const BYTES = 2 ** 26;
const BUFFERS = 500;
const HOST = 1;
const GUESTS = [2, 3] as const;
const OWNERS = [HOST, ...GUESTS];

const cleanups: (() => void)[] = [];
afterAll(() => {
  while (cleanups.length > 0) cleanups.pop()!();
});

it(
  'guests and host pass loans on by channels over regions',
  async (context) => {
    await needGuest(context);
    const objects = OWNERS.map(() => new MemoryObject(BYTES, 4096));
    const readers = objects.map((object) => object.readOnly());
    cleanups.push(() => readers.forEach((fd) => native.fileClose(fd)));
    cleanups.push(() => objects.forEach((object) => object.close()));
    const domain = await joinRegions({
      name: 'host',
      domain: HOST,
      map: () => ({
        own: addressSpace().import(objects[0]!.fd, { bytes: BYTES, address: addressOf(HOST) }),
        peers: GUESTS.map((guest, i) =>
          addressSpace().attach(readers[i + 1]!, { address: addressOf(guest), bytes: BYTES }),
        ),
      }),
    });
    cleanups.push(() => domain.close());
    const wrong: number[] = [];
    const serials: number[] = [];
    const owners = new Set<string>();
    const ended = new Promise<void>((resolve) => {
      domain.listen('sink', async (channel) => {
        for await (const message of channel) {
          owners.add(`${message.body.owner} by ${message.body.via}, ${message.bytes} bytes`);
          if (firstWrong(message.u32, message.aux) >= 0) wrong.push(message.aux);
          serials.push(message.aux);
          message.release();
        }
        channel.close();
        resolve();
      });
    });
    const [guestA, guestB] = await Promise.all(
      GUESTS.map((guest) =>
        startRegionGuest({
          name: `channels ${guest}`,
          domain: guest,
          program: ['region-channels', String(guest)],
          descriptors: new Map(
            OWNERS.map((owner, i) => [owner, owner === guest ? objects[i]!.fd : readers[i]!]),
          ),
          bytes: BYTES,
          timeoutMs: LIMIT_MS,
        }),
      ),
    );
    await using a = guestA!;
    await using b = guestB!;
    await Promise.all([a.ready, b.ready]);
    expect(await a.message()).toBe('ready');
    b.send(String(BUFFERS));
    expect(await Promise.all([a.message(), b.message()])).toEqual(['done', 'done']);
    await ended;
    for (const guest of [a, b]) guest.send('over');
    const ends = await Promise.all([a.done, b.done]);
    for (const { exitCode, stderr } of ends) {
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
    }
    expect(wrong).toEqual([]);
    expect(serials).toEqual(Array.from({ length: BUFFERS }, (_, i) => i));
    expect([...owners]).toEqual([`3 by 2, ${BUFFER_BYTES} bytes`]);
    expect(a.results).toMatchObject({ passed: BUFFERS });
    expect(b.results).toMatchObject({ strays: 0 });
  },
  LIMIT_MS + 10_000,
);
