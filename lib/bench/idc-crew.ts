// The two processes of `bench idc`: this one, with a hub of its own in a temporary folder, and a
// child. Both are domains. Everything is closed and removed in the end, also half-way.

import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { setImmediate as turn } from 'node:timers/promises';
import { Hub, joinDomain, type Channel, type Domain, type RecordChannel } from '../idc/index.js';
import { PenstockError } from '../errors.js';
import { native } from '../native.js';
import { Ask, Asker } from './idc-records.js';
import type { Clock } from './loop.js';

/** How the child is to answer from now on. */
export type ChildOrder =
  | { readonly phase: 'spin' | 'wait' | 'park' | 'loans' | 'cpu' }
  | { readonly phase: 'socket'; readonly path: string; readonly bytes: number };

/** The child is about to do what it was told; CPU time that its process has used so far. */
export interface ChildAnswer {
  readonly ready: ChildOrder['phase'] | 'join';
  readonly cpuUs: number;
}

const JOIN_MS = 20_000;
const ANSWER_MS = 20_000;
const END_MS = 5000;
const POLLS_PER_TURN = 1000;
const NAME = 'bench-asker';

export class IdcCrew {
  readonly domain: Domain;
  readonly records: RecordChannel;
  readonly loans: Channel;
  readonly asker: Asker;
  readonly clock: Clock;
  readonly folder: string;
  readonly child: ChildProcess;
  /** What is left to be undone, in reverse. */
  private readonly undo: (() => void)[];

  private constructor(
    folder: string,
    domain: Domain,
    child: ChildProcess,
    records: RecordChannel,
    loans: Channel,
    undo: (() => void)[],
  ) {
    this.folder = folder;
    this.domain = domain;
    this.child = child;
    this.records = records;
    this.loans = loans;
    this.undo = undo;
    const { words, read } = native.tscClock();
    this.clock = { words: new Uint32Array(words), read, hertz: native.tscHertz() };
    this.asker = new Asker(records, this.clock);
  }

  /**
   * `cpus`: where this thread and the child's are to run. Errors: ADDRESS_SPACE_IN_USE (this
   * process has memory already), BENCH_CHILD.
   */
  static async start(cpus: readonly [number, number] | null): Promise<IdcCrew> {
    const undo: (() => void)[] = [];
    try {
      const folder = mkdtempSync(join(tmpdir(), 'penstock-idc-'));
      undo.push(() => rmSync(folder, { recursive: true, force: true }));
      const path = join(folder, 'hub');
      const hub = Hub.listen(path);
      undo.push(() => hub.close());
      const domain = await joinDomain(path, { name: NAME });
      undo.push(() => domain.close());
      const records = new Promise<RecordChannel>((resolve) => {
        domain.listenRaw('records', (incoming) => resolve(incoming.accept().records));
      });
      const loans = new Promise<Channel>((resolve) => domain.listen('loans', resolve));
      const program = fileURLToPath(new URL('./idc-child.js', import.meta.url));
      const child = fork(program, [path, NAME, String(cpus?.[1] ?? '')], {
        stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
        execArgv: [],
        // Structured clones, as between workers.
        serialization: 'advanced',
        // What it would warn of, this process has said.
        env: { ...process.env, PENSTOCK_QUIET: '1' },
      });
      undo.push(() => child.kill('SIGKILL'));
      await answered(child, 'join', JOIN_MS);
      if (cpus !== null) {
        const before = native.cpuAffinity();
        undo.push(() => native.setCpuAffinity(before));
        native.setCpuAffinity([cpus[0]]);
      }
      return new IdcCrew(folder, domain, child, await records, await loans, undo);
    } catch (error) {
      for (const step of undo.reverse()) step();
      throw error;
    }
  }

  /** Has the child answer in another way; resolves, when it does, with its CPU time so far. */
  async order(order: ChildOrder): Promise<number> {
    const answer = answered(this.child, order.phase, ANSWER_MS);
    this.child.send(order);
    return answer;
  }

  /** Ends a phase of records: the child looks at its parent's messages again. */
  async stop(): Promise<void> {
    const { records, asker } = this;
    while (!asker.order(Ask.STOP)) await this.turn();
    // Answers that were late for their slice come before it.
    for (let polls = 0; records.poll(1) === 0 || records.rq[0] !== Ask.STOP; polls++) {
      if (polls % POLLS_PER_TURN === POLLS_PER_TURN - 1) await this.turn();
    }
  }

  /** A turn of the event loop. Throws when the child is no more. */
  async turn(): Promise<void> {
    await turn();
    const { records, loans } = this;
    const error = records.error ?? loans.records.error;
    if (error !== null) throw error;
    if (records.over) throw childFailed('it closed its channel');
  }

  async close(): Promise<void> {
    const { child } = this;
    if (child.exitCode === null && child.signalCode === null) {
      const ended = once(child, 'exit');
      if (child.connected) child.disconnect();
      const timer = setTimeout(() => child.kill('SIGKILL'), END_MS);
      await ended;
      clearTimeout(timer);
    }
    for (const step of this.undo.splice(0).reverse()) step();
  }

  /** The child's end at once: it may be in the middle of a phase. */
  kill(): void {
    this.child.kill('SIGKILL');
  }
}

/** The child's answer to an order. Errors: BENCH_CHILD. */
function answered(
  child: ChildProcess,
  phase: ChildAnswer['ready'],
  timeoutMs: number,
): Promise<number> {
  return new Promise((resolve, reject) => {
    const done = (): void => {
      clearTimeout(timer);
      child.off('message', onMessage);
      child.off('exit', onExit);
      child.off('error', onExit);
    };
    const onMessage = (message: unknown): void => {
      const { ready, cpuUs } = message as ChildAnswer;
      if (ready !== phase) return;
      done();
      resolve(cpuUs);
    };
    const onExit = (): void => {
      done();
      reject(childFailed(`it ended before it was ready to ${phase}`));
    };
    const timer = setTimeout(() => {
      done();
      reject(childFailed(`it was not ready to ${phase} within ${timeoutMs} ms`));
    }, timeoutMs);
    child.on('message', onMessage);
    child.on('exit', onExit);
    child.on('error', onExit);
  });
}

function childFailed(why: string): PenstockError {
  return new PenstockError('BENCH_CHILD', `the other process of the benchmark failed: ${why}`, {
    hint: 'its words stand above, if it had any',
  });
}
