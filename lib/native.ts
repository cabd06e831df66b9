// The addon's typed face, and the only file that loads it (floor 0).
//
// Everything here is shaped like a system call: numbers and typed arrays in, numbers out. A failing
// system call throws a NativeError that carries the call's name and errno; an argument of the wrong
// type or range throws a TypeError or RangeError with code ERR_INVALID_ARG. Policy, loops over I/O
// and text for people live on the floors above.
//
// Addresses are Addresses (lib/memory): integers below 2^44, offsets from BASE = 2^46. Hot calls
// take no arguments: they are functions bound to a control block in memory that both sides see,
// because an argument costs 5 to 7 ns to unwrap and a call without any about 15 ns.

import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { PenstockError } from './errors.js';
import type { Native } from './native-calls.js';

export type * from './native-calls.js';

function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'binding.gyp'))) {
    const parent = dirname(folder);
    if (parent === folder)
      throw new Error('penstock: the package root (binding.gyp) was not found');
    folder = parent;
  }
  return folder;
}

function load(): Native {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    const here = `${process.platform} ${process.arch}`;
    throw new PenstockError('PLATFORM', `penstock runs on Linux x86-64 only; this is ${here}`, {
      hint: 'memory ordering of x86-64 is relied upon: there is no switch to go on',
      exitCode: 3,
    });
  }
  const require = createRequire(import.meta.url);
  const override = process.env['PENSTOCK_ADDON'];
  try {
    if (override !== undefined) return require(override) as Native;
    const find = require('node-gyp-build') as (root: string) => Native;
    return find(packageRoot());
  } catch (cause) {
    throw new PenstockError('ADDON_MISSING', 'the native addon could not be loaded', {
      hint: 'run `npm run build` (needs g++, make, python3); was it built for this Node and libc?',
      exitCode: 3,
      cause,
    });
  }
}

export const native: Native = load();
