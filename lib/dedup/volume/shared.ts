// Pools that are open by URI: all volumes of one pool that this environment opens share it, and it
// is closed with the last of them.

import { PenstockError } from '../../errors.js';
import type { Backend, BlockDevice } from '../../hpdi/index.js';
import { parseDuration, parseSize } from '../../units.js';
import { Pool } from '../pool.js';
import { closeAll, type OpenOptions } from '../pool-open.js';
import { SPACE_STATES, type SpaceState } from '../space/space-watch.js';
import { VolumeBackend, type VolumeOptions } from './volume.js';

interface SharedPool {
  readonly pool: Promise<Pool>;
  /** What it was opened with. */
  readonly own: ReadonlyMap<string, string>;
  /** Closes its devices, once it is closed. */
  readonly close: () => Promise<void>;
  users: number;
}

const pools = new Map<string, SharedPool>();
/** Those that are being closed: their devices are still theirs. Settled either way. */
const closing = new Map<string, Promise<unknown>>();

/** Keys of a `dedup:` URI that are its own, with one line of help each. */
export const DEDUP_KEYS: Readonly<Record<string, string>> = {
  'dedup.thn': 'blocks of the shortest run that is deduplicated, other than the pool has it',
  'dedup.cache': 'SIZE of memory for pages of metadata (32MiB)',
  'dedup.llrrm': 'URI of low-latency memory for this time; none: without',
  'dedup.block': 'SIZE of logical blocks: 512, or 4096 (the default)',
  'dedup.stats': 'path of a socket that serves statistics: `penstock pool top PATH`',
  'dedup.clean': 'DURATION between looks whether extents are to be emptied (1m); 0: never',
  'dedup.index': 'SIZE of memory for the fingerprint index (by the size of the pool)',
};

/**
 * Opens a volume of the pool on a data device; `key` is the device's URI, opened by `open` unless
 * it is open, as is low-latency memory. Errors: BAD_URI without a volume, BAD_OPTION, those of
 * Pool.open and its openVolume.
 */
export async function openVolume(
  key: string,
  open: (uri: string) => Promise<BlockDevice>,
  own: ReadonlyMap<string, string>,
  volume: string,
  uri: string,
): Promise<Backend> {
  if (volume === '') {
    throw new PenstockError('BAD_URI', `the URI '${uri}' names no volume`, {
      hint: `write ${uri}#NAME; \`penstock volume list\` shows the names`,
      exitCode: 2,
    });
  }
  while (closing.has(key)) await closing.get(key);
  const shared = pools.get(key) ?? share(key, open, own);
  assertSame(shared, own, uri);
  shared.users++;
  const letGo = async (): Promise<void> => {
    shared.users--;
    if (shared.users > 0) return;
    pools.delete(key);
    const end = shared.pool.then((pool) => pool.close().finally(() => shared.close()));
    const settled = end.catch(() => undefined).finally(() => closing.delete(key));
    closing.set(key, settled);
    await end;
  };
  try {
    const pool = await shared.pool;
    const record = pool.engine.parts.catalogue.get(volume);
    const block = own.get('block');
    const options: VolumeOptions = block === undefined ? {} : { blockSize: parseSize(block) };
    return new VolumeBackend(uri, pool.engine, record, pool.device, options, letGo);
  } catch (error) {
    await letGo().catch(() => undefined);
    throw error;
  }
}

/** Throws BAD_OPTION for keys of the pool that is open which are other than it was opened with. */
function assertSame(shared: SharedPool, own: ReadonlyMap<string, string>, uri: string): void {
  for (const [key, value] of own) {
    if (key === 'block' || shared.own.get(key) === value) continue;
    throw new PenstockError('BAD_OPTION', `the pool of ${uri} is open with another dedup.${key}`, {
      hint: 'leave the key out, or close the volumes that are open first',
      exitCode: 2,
    });
  }
}

function share(
  key: string,
  open: (uri: string) => Promise<BlockDevice>,
  own: ReadonlyMap<string, string>,
): SharedPool {
  const devices: BlockDevice[] = [];
  const close = (): Promise<void> =>
    closeAll(devices.splice(0).map((device) => () => device.close()));
  const make = async (): Promise<Pool> => {
    const options: OpenOptions = { ...optionsOf(own), openLlrrm: open };
    const llrrm = own.get('llrrm');
    try {
      const device = await open(key);
      devices.push(device);
      if (llrrm === 'none') options.llrrm = null;
      else if (llrrm !== undefined) {
        options.llrrm = await open(llrrm);
        devices.push(options.llrrm);
      }
      const pool = await Pool.open(device, options);
      warnOfSpace(pool);
      return pool;
    } catch (error) {
      await close();
      throw error;
    }
  };
  const shared = { pool: make(), own, close, users: 0 };
  pools.set(key, shared);
  return shared;
}

/** Who opens a volume by its URI has no pool to ask: the process is told when space gets less. */
function warnOfSpace(pool: Pool): void {
  let told = 0;
  const look = (state: SpaceState): void => {
    const now = SPACE_STATES.indexOf(state);
    if (now > told) {
      const used = Math.floor(pool.stats().used_percent);
      const what = `space of the pool of ${pool.device.uri} is ${state}`;
      process.emitWarning(`${what}: ${used} % in use or promised`, {
        code: 'PENSTOCK_POOL_SPACE',
        detail:
          'writes that find no room fail (NO_SPACE): discard or delete what is not needed, or let' +
          ' the pool grow: `penstock pool grow`',
      });
    }
    told = now;
  };
  look(pool.space);
  pool.onSpace(look); // until the pool is closed
}

function optionsOf(own: ReadonlyMap<string, string>): OpenOptions {
  const options: OpenOptions = {};
  const thn = own.get('thn');
  const cache = own.get('cache');
  const index = own.get('index');
  const stats = own.get('stats');
  if (stats !== undefined) options.statsSocket = stats;
  if (thn !== undefined) options.thn = /^\d+$/.test(thn) ? Number(thn) : NaN;
  if (cache !== undefined) options.cacheBytes = parseSize(cache);
  const clean = own.get('clean');
  if (clean !== undefined) options.cleanEveryMs = 1000 * parseDuration(clean);
  if (index !== undefined) options.indexBytes = parseSize(index);
  return options;
}
