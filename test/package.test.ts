// The package as somebody gets it who installs it: what is in it, and what its doors give.

import { execFileSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname, posix } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { readText } from './tidy/files.js';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

interface Manifest {
  main: string;
  types: string;
  bin: Record<string, string>;
  exports: Record<string, string | Record<string, string>>;
}

const manifest = JSON.parse(readText('package.json')) as Manifest;

describe('the package', () => {
  it('holds every file its doors lead to, and what the addon is built of', () => {
    const text = execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], {
      cwd: root,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const [pack] = JSON.parse(text) as [{ files: { path: string }[] }];
    const files = new Set(pack.files.map(({ path }) => path));
    const doors = Object.values(manifest.exports).flatMap((door) =>
      typeof door === 'string' ? [door] : Object.values(door),
    );
    const wanted = [...doors, ...Object.values(manifest.bin), manifest.main, manifest.types];
    const sources = readText('binding.gyp').match(/native\/[\w-]+\.cc/g) ?? [];
    const all = [...wanted.map((path) => posix.normalize(path)), ...sources, 'LICENSE'];
    expect(sources.length).toBeGreaterThan(0);
    expect(all.filter((path) => !files.has(path))).toEqual([]);
    expect([...files].filter((path) => /^(test|build|node_modules|\.ci)\//.test(path))).toEqual([]);
  });

  it('gives by its main door what its pages speak of', async () => {
    const door = await load('penstock');
    expect(Object.keys(door)).toEqual(
      expect.arrayContaining([
        ...['open', 'attach', 'SCHEMES', 'BlockDevice', 'Queue', 'PenstockError', 'explainStatus'],
        ...['REQUEST', 'COMPLETION', 'OPERATIONS', 'FLAGS', 'STATUS'],
        ...['SEND_OFFLOADS', 'RECEIVE_FLAGS', 'decodePacket'],
        ...['addressSpace', 'Memory', 'DmaBuffer', 'BufferPool', 'Ring', 'probeUring'],
        ...['layout', 'decode', 'checkLayout', 'publish', 'fence', 'ringDoorbell'],
        ...['readTrace', 'replayTrace', 'faultControl'],
      ]),
    );
  });

  it('gives workloads by a door of their own', async () => {
    const door = await load('penstock/bench');
    expect(Object.keys(door)).toEqual(
      expect.arrayContaining(['runJobs', 'defaultJob', 'benchJson', 'benchText', 'parseJobFile']),
    );
  });

  it('reaches into a device under faults that was opened by its URI', async () => {
    const { open, faultControl } = (await load('penstock')) as typeof import('../lib/index.js');
    const uri = 'ram:1MiB?fault.cache=64k&fault.seed=3&trace.to=/dev/null';
    await using device = await open(uri);
    const control = faultControl(device.backend)!;
    const buffer = device.memory.alloc(512);
    buffer.u8.fill(7);
    await device.write(5, buffer);
    expect(control.dirtyBlocks).toBe(1);
    await control.cut();
    await expect(device.read(5, buffer)).rejects.toMatchObject({ code: 'DEVICE_GONE' });
    control.heal();
    await device.read(5, buffer);
    expect(new Set(buffer.u8)).toEqual(new Set([0]));
    expect(control.counters).toMatchObject({ cuts: 1, lostBlocks: 1 });
    buffer.free();
    await using plain = await open('ram:1MiB');
    expect(faultControl(plain.backend)).toBeUndefined();
  });
});

/** By the name that a user imports, so that the manifest's `exports` decide. */
function load(name: string): Promise<object> {
  const path = createRequire(import.meta.url).resolve(name);
  return import(path) as Promise<object>;
}
