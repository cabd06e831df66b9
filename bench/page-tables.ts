// What it costs in page tables that many processes map the same memory: on ordinary pages, on
// hugepages at any address, and on hugepages at a whole GiB, where the kernel lets processes share.
//
// VmPTE of a process counts a table in every process that shares it, and PageTables of the machine
// moves with whatever else runs: what is there is counted frame by frame (page-table-frames.ts).
// Page faults show sharing too: who finds the tables that another process filled faults once per
// GiB and not once per page.
//
// Every measurement maps at addresses that were not used before, in another domain's slot: the
// kernel keeps emptied tables.

import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { PenstockError } from '../lib/errors.js';
import { addressSpace, GRANULE_BYTES as HUGE, type Segment } from '../lib/memory/index.js';
import { PageTableFrames } from './page-table-frames.js';
import type { MapReply, MapRequest } from './page-tables-domain.js';
import {
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
import { adoptChild, atEnd } from './scratch.js';

const OVERCOMMIT = '/proc/sys/vm/nr_overcommit_hugepages';
const GIBIBYTE = 2 ** 30;
const SHARED_BYTES = GIBIBYTE;
const COUNTS = [1, 8, 32];
const SLOT_BYTES = 2 ** 36;
/** Slots that neither owner nor readers have. */
const FIRST_SLOT = 3;
const SLOTS = 253;

/** Faults of whoever finds the tables filled, of one who has to fill them, at most. */
const FAULT_SHARE_MAX = 0.25;
/** Page tables on hugepages, of those on ordinary pages, at most. */
const TABLE_SHARE_MAX = 0.02;

interface Layout {
  name: string;
  descriptor: number;
  pageBytes: number;
  /** Where in a slot readers map it; the owner has it where it was allocated. */
  offset: number;
}

interface Round {
  layout: string;
  processes: number;
  /** Page tables that all of them take; NaN where it cannot be counted. */
  allKib: number;
  replies: MapReply[];
}

const LAYOUTS: readonly Layout[] = [
  { name: '4 KiB pages', descriptor: 0, pageBytes: 4096, offset: 0 },
  { name: '2 MiB pages at 2 MiB', descriptor: 1, pageBytes: HUGE, offset: HUGE },
  { name: '2 MiB pages at 1 GiB', descriptor: 1, pageBytes: HUGE, offset: 0 },
];

/** Lets hugepages of that size be used beyond those the machine has reserved, until the end. */
function allowHugepages(bytes: number): void {
  const before = readFileSync(OVERCOMMIT, 'utf8').trim();
  try {
    writeFileSync(OVERCOMMIT, String(Number(before) + bytes / HUGE));
  } catch (cause) {
    throw new PenstockError('PERMISSION_DENIED', `${OVERCOMMIT} could not be written`, {
      hint: 'run this benchmark as root',
      exitCode: 3,
      cause,
    });
  }
  atEnd(() => writeFileSync(OVERCOMMIT, before));
}

/** Memory with all its pages, which the owner has written. */
function makeSegment(pageBytes: number): Segment {
  const segment = addressSpace().create(SHARED_BYTES, { kind: 'shared', pageBytes });
  for (let i = 0; i < segment.bytes; i += 4096) segment.u8[i] = 1;
  return segment;
}

async function startDomains(
  count: number,
  fds: readonly number[],
  frames: PageTableFrames | null,
): Promise<ChildProcess[]> {
  const path = fileURLToPath(new URL('./page-tables-domain.js', import.meta.url));
  const domains: ChildProcess[] = [];
  for (let i = 0; i < count; i++) {
    progress(`starting domain ${i + 1} of ${count}`);
    const child = fork(path, {
      execArgv: ['--expose-gc', '--single-threaded-gc'],
      stdio: ['ignore', 'inherit', 'inherit', 'ipc', ...fds],
    });
    adoptChild(child);
    frames?.adopt(child.pid!);
    await once(child, 'message');
    domains.push(child);
  }
  return domains;
}

async function ask<T>(domain: ChildProcess, request: MapRequest | null): Promise<T> {
  const ended = new AbortController();
  const onExit = (): void => ended.abort();
  domain.once('exit', onExit);
  try {
    domain.send(request as never);
    const [reply] = (await once(domain, 'message', { signal: ended.signal })) as [T];
    return reply;
  } finally {
    domain.off('exit', onExit);
  }
}

let measurements = 0;

async function measure(
  layout: Layout,
  domains: readonly ChildProcess[],
  frames: PageTableFrames | null,
): Promise<Round> {
  const slot = FIRST_SLOT + (measurements++ % SLOTS);
  const { descriptor, offset, pageBytes } = layout;
  const claim = { address: slot * SLOT_BYTES + offset, bytes: SHARED_BYTES, pageBytes };
  const before = frames?.kib() ?? NaN;
  const replies: MapReply[] = [];
  for (const domain of domains) replies.push(await ask(domain, { descriptor, slot, ...claim }));
  const after = frames?.kib() ?? NaN;
  for (const domain of domains) await ask(domain, null);
  return {
    layout: layout.name,
    processes: domains.length,
    allKib: after - before,
    replies,
  };
}

/** A row of the table: medians over rounds. */
function summary(rounds: readonly Round[]): Record<string, Cell> {
  const { layout, processes } = rounds[0]!;
  const sum = (values: number[]): number => values.reduce((total, value) => total + value, 0);
  const of = (pick: (round: Round) => number): number => median(rounds.map(pick));
  const later = rounds.flatMap((round) => round.replies.slice(1));
  return {
    layout,
    processes,
    'page tables, KiB': of((round) => round.allKib),
    'sum of VmPTE, KiB': of((round) => sum(round.replies.map((reply) => reply.tablesKib))),
    'faults of the first': of((round) => round.replies[0]!.faults),
    'of each later': median(later.map((reply) => reply.faults)),
    'ms of the first': of((round) => round.replies[0]!.elapsedMs),
    'ms of each later': median(later.map((reply) => reply.elapsedMs)),
  };
}

await program(async () => {
  const options = parseOptions({ rounds: 3, runtime: 1 });
  allowHugepages(SHARED_BYTES);
  const segments = [makeSegment(4096), makeSegment(HUGE)];
  const fds = segments.map((segment) => segment.descriptor());
  const frames = PageTableFrames.open();
  const domains = await startDomains(Math.max(...COUNTS), fds, frames);
  const rounds: Round[] = [];
  for (let round = 0; round < options.rounds; round++) {
    for (const layout of LAYOUTS) {
      for (const count of COUNTS) {
        progress(`round ${round + 1} of ${options.rounds}: ${layout.name}, ${count}`);
        rounds.push(await measure(layout, domains.slice(0, count), frames));
      }
    }
  }
  progressEnd();
  for (const domain of domains) domain.kill();
  const rows = LAYOUTS.flatMap(({ name }) =>
    COUNTS.map((count) =>
      summary(rounds.filter((one) => one.layout === name && one.processes === count)),
    ),
  );
  const value = (layout: number, column: string): number =>
    rows[(layout + 1) * COUNTS.length - 1]![column] as number;
  const tables = value(2, 'sum of VmPTE, KiB') / value(0, 'sum of VmPTE, KiB');
  const faults = value(2, 'of each later') / value(2, 'faults of the first');
  const bars: Bar[] = [
    atMost('page tables on hugepages, of those on ordinary pages', tables, TABLE_SHARE_MAX),
    atMost('at a whole GiB: faults of a later process, of the first', faults, FAULT_SHARE_MAX),
  ];
  finish({ schema: 'penstock.bench.page-tables/1', rows, bars, rounds }, options);
});
