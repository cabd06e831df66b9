// Every function of the addon that takes no memory or ring is called with hostile arguments. It may
// throw (ERR_INVALID_ARG, or an errno) or do harmless work, but the process lives and nothing
// leaks. The calls run in a process of their own, so that a crash is seen as one.

import { once } from 'node:events';
import { expect, test } from 'vitest';
import { startProcess } from './support.js';

const names = [
  ...['fileOpen', 'fileClose', 'fileDuplicate', 'fileStat', 'blockGeometry', 'fileAllocate'],
  ...[
    'fileTruncate',
    'fileLock',
    'eventfdCreate',
    'eventfdSignal',
    'eventfdDrain',
    'timerfdCreate',
  ],
  ...['timerfdSet', 'timerfdDrain', 'pidfdOpen', 'pidfdSignal', 'park', 'futexWait', 'futexWake'],
  ...['watchOpen', 'watchSet', 'watchClose', 'unixListen', 'unixConnect', 'unixAccept'],
  ...['unixPair', 'unixSend', 'unixReceive', 'unixPeer', 'streamListen', 'streamConnect'],
  ...[
    'streamSend',
    'streamReceive',
    'streamPeek',
    'streamEnd',
    'streamUnread',
    'cpuAffinity',
    'setCpuAffinity',
  ],
  ...['tscHertz', 'tscClock', 'pause', 'threadCpuTime', 'xxh3', 'crc32c', 'xxh3List'],
  ...['crc32cList', 'copyList', 'compareList', 'fillList', 'filePread', 'filePwrite', 'membarrier'],
  ...['dmaOpen', 'dmaMap', 'dmaHold', 'dmaMark', 'dmaStale', 'dmaDrop', 'dmaClose', 'regionMap'],
  ...['regionBuffer', 'regionClose', 'vfioContainerOpen', 'vfioGroupOpen', 'vfioGroupStatus'],
  ...['vfioGroupAttach', 'vfioSetIommu', 'vfioIommuInfo', 'vfioMap', 'vfioUnmap'],
  ...['vfioDeviceOpen', 'vfioDeviceInfo', 'vfioRegionInfo', 'vfioIrqInfo', 'vfioSetIrqs'],
  ...['vfioUnmaskIrq', 'blockingStart', 'blockingResult', 'segmentAttach', 'objectSeal'],
  ...['fingerprintProbe', 'fingerprintInsert', 'fingerprintRemove', 'fingerprintSweep'],
];

// Plain JavaScript: runs in the child. No number among the values is an open descriptor, and a
// timeout that is valid is cut short, since waiting is not what is tested.
const attack = `
  const { names, seed, calls } = JSON.parse(process.argv[1]);
  let state = seed;
  const random = (n) => {
    state ^= state << 13; state ^= state >>> 17; state ^= state << 5;
    return (state >>> 0) % n;
  };
  const detached = () => {
    const view = new Uint32Array(64);
    structuredClone(view.buffer, { transfer: [view.buffer] });
    return view;
  };
  const values = [
    () => undefined, () => null, () => true, () => NaN, () => Infinity, () => -Infinity,
    () => -1, () => -0.5, () => 0.5, () => 2 ** 31, () => 2 ** 32, () => 2 ** 44,
    () => 2 ** 53, () => -(2 ** 53), () => 1e300, () => 4000, () => 100000, () => 10n ** 20n,
    () => '', () => 'x', () => 'a\\0b', () => '\\0', () => '/nonexistent/x',
    () => 'y'.repeat(1 << 20),
    () => Symbol('s'), () => ({}), () => [], () => [1e9], () => [-1], () => ['1'], () => [[]],
    () => new Array(100000), () => new Array(65).fill(4000), () => [NaN, {}, null],
    () => () => undefined, () => class {}, () => new Proxy([], {}),
    () => new Proxy([], { get() { throw new Error('get'); } }),
    () => ({ length: 4, 0: 1 }), () => ({ valueOf() { throw new Error('valueOf'); } }),
    () => new Uint8Array(0), () => new Uint32Array(0), () => detached(),
    () => new Uint8Array(13), () => new Uint32Array(64), () => new Uint32Array(64).fill(-1),
    () => new Uint32Array(64).map(() => random(2 ** 32)), () => new Int32Array(4).fill(100000),
    () => new Float64Array(8), () => new BigInt64Array(8), () => new DataView(new ArrayBuffer(9)),
    () => new ArrayBuffer(64), () => new SharedArrayBuffer(64),
    () => new Uint8Array(new SharedArrayBuffer(64)), () => new Uint8Array(64).subarray(63),
    () => new Uint32Array(new ArrayBuffer(64, { maxByteLength: 128 })), () => new Date(),
  ];
  const codes = {};
  const owned = () => require('node:fs').readdirSync('/proc/self/fd').map((fd) => {
    try { return require('node:fs').readlinkSync('/proc/self/fd/' + fd); } catch { return ''; }
  }).sort().join('\\n');
  process.stdout.write(''); // libuv opens a spare descriptor with its first stream
  const before = owned();
  for (const name of names) {
    const f = native[name];
    for (let i = 0; i < calls; i++) {
      const args = Array.from({ length: random(6) }, () => values[random(values.length)]());
      if (name === 'park' && typeof args[1] === 'number' && args[1] > 1000) args[1] = 1000;
      try {
        const result = f(...args);
        if (/^(eventfdCreate|timerfdCreate|pidfdOpen)$/.test(name)) native.fileClose(result);
        if (name === 'dmaOpen') native.dmaClose(result);
        if (name === 'unixPair') result.forEach((fd) => native.fileClose(fd));
        codes.ok = (codes.ok ?? 0) + 1;
      } catch (error) {
        const code = error.code ?? error.message;
        codes[code] = (codes[code] ?? 0) + 1;
      }
    }
  }
  process.stdout.write(JSON.stringify({ codes, before, after: owned() }));
`;

test.each([1, 2, 3])('hostile arguments do no harm (seed %i)', async (seed) => {
  const child = startProcess(attack, JSON.stringify({ names, seed: seed * 7919, calls: 400 }));
  let output = '';
  child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
  const exit = (await once(child, 'close')) as unknown;
  expect(exit).toEqual([0, null]);
  const { codes, before, after } = JSON.parse(output) as {
    codes: Record<string, number>;
    before: string;
    after: string;
  };
  expect(after).toBe(before);
  expect(codes['ERR_INVALID_ARG']).toBeGreaterThan(names.length * 200);
  const odd = Object.keys(codes).filter((code) => !/^(ok|ERR_INVALID_ARG|get|E[A-Z]+)$/.test(code));
  expect(odd).toEqual([]);
});
