// Kill: `kill -9` at a random moment, round after round.
//
// What must hold after each: no process or kernel worker of it is left, no hugepage is taken, no
// file
// and no socket but the device's own file; and every write that the child had reported as
// acknowledged
// is in the file, whole (process death keeps acknowledged writes).

import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, openSync, readdirSync, readFileSync, readSync, rmSync } from 'node:fs';
import { once } from 'node:events';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { check, hugepagesFree, Random, scratchFolder, sleep, until, within } from './harness.js';
import type { Soak, SoakRun } from './harness.js';
import { BLOCK_BYTES, blockIsWhole, REGION_BLOCKS, sequenceOf, WRITERS } from './kill-blocks.js';

const CHILD = fileURLToPath(new URL('./kill-child.js', import.meta.url));
const CLI = fileURLToPath(new URL('../../lib/cli/main.js', import.meta.url));
const START_MS = 30_000;
/** How long the kernel may take to clear away after a death. */
const CLEAR_MS = 10_000;

interface Job {
  label: string;
  argv: string[];
  /** The child reports what was acknowledged, and the file is checked against it. */
  reports: boolean;
}

class KillRun implements SoakRun {
  private readonly random: Random;
  private readonly scratch = scratchFolder();
  private readonly file = join(this.scratch, 'device');
  private readonly hugepages = hugepagesFree();
  /** By writer: the newest sequence that this life's child has reported. */
  private readonly acknowledged = new Float64Array(WRITERS);
  private sequence = 0;

  constructor(random: Random) {
    this.random = random;
  }

  async round(index: number): Promise<number> {
    const job = this.job();
    try {
      await this.live(job);
      await this.examine(job);
    } catch (cause) {
      throw new Error(`round ${index}, ${job.label}`, { cause });
    }
    return 1;
  }

  finish(): Promise<void> {
    return Promise.resolve();
  }

  private job(): Job {
    const { random, file } = this;
    const direct = random.chance(0.5) ? '&direct=1' : '';
    const kind = random.below(4);
    if (kind < 2) {
      this.sequence += 2 ** 24;
      const uri = `file:${file}?create=${WRITERS * REGION_BLOCKS * BLOCK_BYTES}${direct}`;
      const argv = [CHILD, uri, String(this.sequence), String(random.between(1, WRITERS))];
      return { label: `reported writes, ${uri}`, argv, reports: true };
    }
    const uri = kind === 2 ? 'ram:32MiB' : `file:${this.scratch}/bench?create=16MiB${direct}`;
    const options = '--rw randrw --bs 4k --iodepth 16 --verify --runtime 30 --size 16MiB'.split(
      ' ',
    );
    const jobs = String(random.between(1, 2));
    const argv = [CLI, 'bench', uri, ...options, '--numjobs', jobs, '--json'];
    return { label: `bench ${uri}, ${jobs} jobs`, argv, reports: false };
  }

  /** Starts the child, lets it live for a while, kills it. */
  private async live(job: Job): Promise<void> {
    this.acknowledged.fill(0);
    const child = spawn(process.execPath, job.argv, {
      // A process group of its own, by which whatever it starts is found again.
      detached: true,
      stdio: ['ignore', job.reports ? 'pipe' : 'ignore', 'pipe'],
      env: { ...process.env, TMPDIR: this.scratch, PENSTOCK_QUIET: '1' },
    });
    const pid = child.pid!;
    let errors = '';
    child.stderr!.on('data', (text: Buffer) => (errors += text.toString()));
    let reports = 0;
    if (job.reports) this.listen(child, () => reports++);
    const exited = once(child, 'exit');
    const ended = job.reports ? once(child, 'close') : exited;
    try {
      if (job.reports && this.random.chance(0.8)) {
        await until('the first report', () => reports > 0 || child.exitCode !== null, START_MS);
      }
      await sleep(this.random.below(job.reports ? 400 : 1500));
      check(child.exitCode === null, `the child ended by itself: ${errors}`);
    } finally {
      if (child.exitCode === null && child.signalCode === null) process.kill(pid, 'SIGKILL');
      await within(CLEAR_MS, 'the death of the child', exited);
      await within(CLEAR_MS, 'the end of its pipes', ended);
    }
    await until('the end of all it started', () => groupMembers(pid).length === 0, CLEAR_MS);
  }

  /** Reports are lines `writer sequence`; a last line may be cut off by the death. */
  private listen(child: ChildProcess, onReport: () => void): void {
    let rest = '';
    child.stdout!.on('data', (text: Buffer) => {
      const lines = (rest + text.toString()).split('\n');
      rest = lines.pop()!;
      for (const line of lines) {
        const [writer = NaN, sequence = NaN] = line.split(' ').map(Number);
        this.acknowledged[writer] = sequence;
        onReport();
      }
    });
  }

  private async examine(job: Job): Promise<void> {
    if (job.reports) this.examineFile();
    rmSync(join(this.scratch, 'bench'), { force: true });
    const files = readdirSync(this.scratch).filter((name) => name !== 'device');
    check(files.length === 0, `files were left: ${files.join(' ')}`);
    const sockets = readFileSync('/proc/net/unix', 'utf8').split('\n');
    const left = sockets.filter((line) => line.includes(this.scratch));
    check(left.length === 0, `sockets were left: ${left.join(' ')}`);
    await until('hugepages come back', () => hugepagesFree() >= this.hugepages, CLEAR_MS);
  }

  /** A block holds the write that was reported for it, or a later one; and no block is torn. */
  private examineFile(): void {
    if (this.acknowledged.every((sequence) => sequence === 0)) return;
    const block = Buffer.alloc(BLOCK_BYTES);
    const fd = openSync(this.file, 'r');
    try {
      for (let writer = 0; writer < WRITERS; writer++) {
        const reported = this.acknowledged[writer]!;
        const first = this.sequence + 1;
        for (let at = 0; at < REGION_BLOCKS; at++) {
          const index = writer * REGION_BLOCKS + at;
          check(
            readSync(fd, block, 0, BLOCK_BYTES, index * BLOCK_BYTES) === BLOCK_BYTES,
            `block ${index} is not in the file`,
          );
          check(blockIsWhole(block, index), `block ${index} is torn or corrupt`);
          // Blocks are written in turn: this is the newest one at or before the reported one.
          const back = (((reported - first - at) % REGION_BLOCKS) + REGION_BLOCKS) % REGION_BLOCKS;
          const wanted = reported - back;
          if (reported === 0 || wanted < first) continue;
          const found = sequenceOf(block);
          check(found >= wanted, `block ${index}: ${wanted} was acknowledged, ${found} is there`);
        }
      }
    } finally {
      closeSync(fd);
    }
  }
}

/** Processes whose process group is `group`. */
function groupMembers(group: number): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => groupOf(pid) === group);
}

function groupOf(pid: number): number {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // After the name, which may hold anything: state, parent, group.
    const [, , processGroup] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return Number(processGroup);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ESRCH') return 0; // it ended meanwhile
    throw error;
  }
}

export const killSoak: Soak = {
  full: 200,
  unit: 'rounds',
  start(random) {
    return Promise.resolve(new KillRun(random));
  },
};
