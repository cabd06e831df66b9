// A process that does what a test tells it to: a member of a hub, or a hub. It loads the built
// package, so it is a real process with real memory; the test sends functions to be run in it.

import { readdirSync, readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { runInThisContext } from 'node:vm';
import { Worker } from 'node:worker_threads';
import * as idc from '../../lib/idc/index.js';
import { addressSpace } from '../../lib/memory/index.js';
import type { DmaBuffer } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';

/** What a function of a test finds in the process that it runs in. */
export interface Stage {
  readonly idc: typeof idc;
  readonly native: typeof native;
  readonly addressSpace: typeof addressSpace;
  readonly sleep: (ms: number) => Promise<void>;
  readonly Worker: typeof Worker;
  /** The process's domain and hub, once it has one. */
  domain: idc.Domain;
  hub: idc.Hub;
  /** What functions leave for each other. */
  readonly channels: Record<string, idc.Channel>;
  readonly messages: idc.Message[];
  readonly buffers: DmaBuffer[];
  readonly notes: Record<string, unknown>;
  /** Descriptors of the process, by what they are. */
  fds(): string[];
  /** Waits until something holds. */
  until(what: string, holds: () => boolean, ms?: number): Promise<void>;
  /** Collects garbage (needs --expose-gc), so that no view is left. */
  collect(): Promise<void>;
}

export interface Ask {
  readonly id: number;
  readonly code: string;
  readonly args: readonly unknown[];
}

export interface Told {
  readonly id: number;
  readonly value?: unknown;
  readonly error?: { name: string; code: string; message: string; hint: string };
}

type Scene = (stage: Stage, ...args: readonly unknown[]) => unknown;

const stage: Stage = {
  idc,
  native,
  addressSpace,
  sleep: (ms) => sleep(ms),
  Worker,
  domain: undefined as unknown as idc.Domain,
  hub: undefined as unknown as idc.Hub,
  channels: {},
  messages: [],
  buffers: [],
  notes: {},
  fds: () =>
    readdirSync('/proc/self/fd').flatMap((fd) => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`).replace(/\d+/g, 'N');
      } catch {
        return []; // the one that the folder was listed by
      }
    }),
  until: async (what, holds, ms = 10_000) => {
    const end = performance.now() + ms;
    while (!holds()) {
      if (performance.now() > end) throw new Error(`${what}: not within ${ms} ms`);
      await sleep(2);
    }
  },
  collect: async () => {
    for (let i = 0; i < 4; i++) {
      (globalThis as unknown as { gc: () => void }).gc();
      await sleep(2);
    }
  },
};

async function perform({ id, code, args }: Ask): Promise<Told> {
  try {
    const scene = runInThisContext(`(${code})`) as Scene;
    return { id, value: await scene(stage, ...args) };
  } catch (error) {
    const {
      name,
      message,
      code: errorCode = '',
      hint = '',
    } = error as Error & {
      code?: string;
      hint?: string;
    };
    return { id, error: { name, code: errorCode, message, hint } };
  }
}

process.on('message', (ask: Ask) => {
  void perform(ask).then((told) => process.send!(told));
});
process.on('disconnect', () => process.exit());
process.send!({ id: 0 } satisfies Told);
