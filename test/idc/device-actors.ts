// Servers and clients of devices as processes of a test.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach } from 'vitest';
import { Actor, startMember } from './actors.js';

/** A device on which nothing completes by itself. */
export const STUCK = 'null:1GiB?fault.stuck=1';

const folders: string[] = [];

afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});

/** URI of a file that lasts for one test. */
export function newFile(): string {
  const folder = mkdtempSync(join(tmpdir(), 'penstock-served-'));
  folders.push(folder);
  return `file:${join(folder, 'disk')}?create=8MiB`;
}

export interface ServerOptions {
  readonly depth?: number;
  readonly limitIops?: number;
  readonly limitBytes?: number;
  readonly lentBytes?: number;
  readonly queues?: number;
  readonly thirdParties?: boolean;
}

/** A process that serves a device under a name. */
export async function startServer(
  hub: string,
  name: string,
  device: string,
  options: ServerOptions = {},
): Promise<Actor> {
  const actor = await startMember(hub, name);
  await actor.run(
    async (stage, uri, given) => {
      stage.device = await stage.open(uri);
      stage.server = new stage.idc.DeviceServer(stage.domain, stage.device, given);
    },
    device,
    options,
  );
  return actor;
}

/** A process that has opened a served device. */
export async function startClient(
  hub: string,
  name: string,
  served: string,
  keys = '',
): Promise<Actor> {
  const actor = await Actor.start();
  await actor.run(async (stage, uri) => {
    stage.device = await stage.open(uri);
  }, `idc:${hub}/${served}?name=${name}${keys}`);
  return actor;
}

/** A member with what it needs to speak to a device without any manners. */
export async function startRaw(hub: string): Promise<Actor> {
  const raw = await startMember(hub, 'raw');
  await raw.run(async (stage) => {
    const link = await stage.domain.linkTo('disk0');
    const ask = JSON.stringify({ version: 1, kind: 'queue' });
    type Records = Awaited<ReturnType<typeof link.connect>>['records'];
    Object.assign(stage.notes, {
      link,
      connect: async (size = 64) => (await link.connect('device', size, ask)).records,
      put: (records: Records, words: readonly number[]) => {
        const at = (records.tail & records.mask) * 8;
        if (records.reserve(1) === 0) return false;
        records.sq.fill(0, at, at + 8);
        records.sq.set(words, at);
        records.submit();
        return true;
      },
      // Status of the next completion, and its words; null: the queue has ended.
      next: async (records: Records) => {
        while ((await records.wait(5000)) === 0) {
          if (records.over) return null;
          throw new Error('no completion came');
        }
        const { rq } = records;
        if (rq[0] !== 37) throw new Error(`a record of kind ${rq[0]}`);
        records.header[17] = records.taken; // done with it
        return { tag: rq[1]!, status: rq[2]! & 0xff, words: [...rq.slice(3, 6)] };
      },
    });
  });
  return raw;
}
