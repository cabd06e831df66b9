// A device served to other processes: what it does for one client at several depths, beside the
// same device in the client's own process, and how four clients share it.
//
// A null device shows the cost of the way between the processes alone; each of the two has a
// processor to itself. A file shows what is left of that where the kernel has work to do: read past
// the page cache, and from it. READ is copied once at the client; READ_LOAN and WRITE are not.

import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { twoCpus } from '../lib/bench/idc-cpus.js';
import { Hub } from '../lib/idc/index.js';
import { HEAP_GROWTH_MAX, type HeapCost } from './heap.js';
import type { LoadOrder, LoadResult, Operation, ServeOrder } from './idc-device-child.js';
import {
  atLeast,
  atMost,
  finish,
  median,
  parseOptions,
  program,
  progress,
  progressEnd,
  type Bar,
  type Cell,
} from './report.js';
import { adoptChild, readThrough, scratchFolder, writeRandomFile } from './scratch.js';

const FILE_BYTES = 2 ** 29;
const DEPTHS = [1, 32, 128] as const;
const OPERATIONS: readonly Operation[] = ['WRITE', 'READ_LOAN', 'READ'];
const UNIT_BYTES = 4096;
const FILE_UNITS = [4096, 65536] as const;
const FILE_DEPTH = 128;
const SERVER_DEPTH = 1024;
const CLIENTS = 4;
/** A device that is slower than its clients, so that it is for the server to say who goes next. */
const BUSY = { uri: 'null:1GiB?fault.delayUs=200', depth: 16 };
const IOPS_MIN = { 1: 0.5e6, 32: 0, 128: 3e6 } as const;
const LOCAL_RATIO_MIN = 0.9;
const SHARE_RATIO_MAX = 1.2;

const CHILD = fileURLToPath(new URL('./idc-device-child.js', import.meta.url));
const [clientCpu, serverCpu] = twoCpus() ?? [-1, -1];

interface Measured {
  readonly what: string;
  readonly depth: number;
  readonly iops: number[];
  readonly heap: HeapCost[];
}

function start(order: ServeOrder | LoadOrder): ChildProcess {
  const child = spawn(process.execPath, [CHILD, JSON.stringify(order)], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, PENSTOCK_QUIET: '1' },
  });
  adoptChild(child);
  return child;
}

/** The one line that a child prints. */
async function answer<T>(child: ChildProcess): Promise<T> {
  const [line] = (await Promise.race([
    once(child.stdout!, 'data'),
    once(child, 'exit').then(() => Promise.reject(new Error('a process of the bench failed'))),
  ])) as [Buffer];
  return JSON.parse(line.toString()) as T;
}

async function run(order: LoadOrder): Promise<LoadResult> {
  const child = start(order);
  const ended = once(child, 'exit');
  const result = await answer<LoadResult>(child);
  await ended;
  if (result.failures > 0) throw new Error(`${result.failures} operations failed`);
  return result;
}

/** Runs `work` while a device is served as `idc:HUB/disk`. */
async function whileServed<T>(order: Omit<ServeOrder, 'name'>, work: () => Promise<T>): Promise<T> {
  const child = start({ ...order, name: 'disk' });
  const ended = once(child, 'exit');
  await answer(child);
  try {
    return await work();
  } finally {
    child.kill('SIGTERM');
    await ended;
  }
}

await program(async () => {
  const options = parseOptions({ rounds: 3, runtime: 1 });
  const folder = scratchFolder(options.folder === '' ? undefined : options.folder);
  const hubPath = join(folder, 'hub');
  const hub = Hub.listen(hubPath);
  const served = `idc:${hubPath}/disk`;
  const file = join(folder, 'data');
  progress('writing the file');
  writeRandomFile(file, FILE_BYTES);

  const results = new Map<string, Measured>();
  const measure = async (
    what: string,
    order: Omit<LoadOrder, 'seconds' | 'unitBytes' | 'heap'> & { unitBytes?: number },
    heap = false,
  ): Promise<number> => {
    progress(`${what}, depth ${order.depth}`);
    const key = `${what} ${order.depth}`;
    const known = results.get(key) ?? { what, depth: order.depth, iops: [], heap: [] };
    results.set(key, known);
    const { runtime: seconds } = options;
    const result = await run({ unitBytes: UNIT_BYTES, ...order, seconds, heap });
    known.iops.push(result.iops);
    if (result.heap !== null) known.heap.push(result.heap);
    return result.iops;
  };
  const iopsOf = (what: string, depth: number): number =>
    median(results.get(`${what} ${depth}`)?.iops ?? []);
  const shares: number[] = [];
  const ratios = new Map<string, number[]>();

  /** How a served null device does for one client. */
  async function oneClient(): Promise<void> {
    const order = { serve: 'null:1GiB', hub: hubPath, depth: SERVER_DEPTH, cpu: serverCpu };
    await whileServed(order, async () => {
      for (const operation of OPERATIONS) {
        for (const depth of DEPTHS) {
          const load = { load: served, operation, depth, cpu: clientCpu };
          await measure(`null: served, ${operation}`, load, depth === 128);
        }
      }
    });
  }

  /** How four clients share a device that is busy. */
  async function severalClients(): Promise<void> {
    const order = { serve: BUSY.uri, hub: hubPath, depth: BUSY.depth, cpu: -1 };
    await whileServed(order, async () => {
      progress(`${CLIENTS} clients`);
      const load: LoadOrder = {
        load: served,
        operation: 'WRITE',
        depth: 64,
        unitBytes: UNIT_BYTES,
        seconds: options.runtime * 2,
        cpu: -1,
        heap: false,
      };
      const loads = await Promise.all(Array.from({ length: CLIENTS }, () => run(load)));
      const iops = loads.map((each) => each.iops);
      shares.push(Math.max(...iops) / Math.min(...iops));
    });
  }

  /** A file in the client's own process, and served. */
  async function fileBeside(name: string, keys: string, unitBytes: number): Promise<void> {
    const uri = `file:${file}${keys}`;
    const size = `${unitBytes / 1024} KiB`;
    const any = { depth: FILE_DEPTH, unitBytes, cpu: -1 };
    const local = await measure(`file: ${name}, ${size}, local READ`, {
      load: uri,
      operation: 'READ',
      ...any,
    });
    await whileServed({ serve: uri, hub: hubPath, depth: SERVER_DEPTH, cpu: -1 }, async () => {
      for (const operation of ['READ_LOAN', 'READ'] as const) {
        const what = `file: ${name}, ${size}, served ${operation}`;
        const iops = await measure(what, { load: served, operation, ...any });
        const known = ratios.get(what) ?? [];
        known.push(iops / local);
        ratios.set(what, known);
      }
    });
  }

  for (let round = 0; round < options.rounds; round++) {
    await oneClient();
    await severalClients();
    for (const unitBytes of FILE_UNITS) {
      readThrough(file);
      await fileBeside('page cache', '', unitBytes);
      await fileBeside('direct', '?direct=1', unitBytes);
    }
  }
  progressEnd();
  hub.close();

  const rows: Record<string, Cell>[] = [...results.values()].map(({ what, depth, iops }) => ({
    what,
    depth,
    IOPS: median(iops),
    'ns/IO': 1e9 / median(iops),
  }));
  const bars: Bar[] = [];
  for (const { what, heap } of results.values()) {
    if (heap.length === 0) continue;
    const growth = median(heap.map(({ heapGrowthBytes }) => heapGrowthBytes));
    bars.push(atMost(`${what}, client's heap after 10^7, bytes`, growth, HEAP_GROWTH_MAX));
    const collections = Math.max(...heap.map(({ gcCount }) => gcCount));
    bars.push(atMost(`${what}, its garbage collections`, collections, 0));
  }
  for (const operation of ['WRITE', 'READ_LOAN'] as const) {
    for (const depth of [1, 128] as const) {
      const what = `null: served, ${operation}`;
      bars.push(atLeast(`${what} at depth ${depth}, IOPS`, iopsOf(what, depth), IOPS_MIN[depth]));
    }
  }
  for (const [what, list] of ratios) {
    bars.push(atLeast(`${what}, to local`, median(list), LOCAL_RATIO_MIN));
  }
  bars.push(atMost(`${CLIENTS} clients, most to least`, median(shares), SHARE_RATIO_MAX));
  finish({ schema: 'penstock.bench.idc-device/1', rows, bars, rounds: { shares } }, options);
});
