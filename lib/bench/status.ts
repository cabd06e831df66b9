// One line of progress on a terminal, in fio's form, rewritten in place on stderr:
// `Jobs: 4 (f=4): [r(4)][42.0%][r=3182MiB/s][r=812k IOPS][eta 00m:02s]`. Nothing where stderr is no
// terminal, so that logs stay clean.

import { scaleBytes, scaleCount } from './numbers.js';
import type { Direction, JobOptions, Sample } from './types.js';

/** fio's letters: capital for sequential. */
const LETTERS: Readonly<Record<Direction, string>> = {
  read: 'R',
  write: 'W',
  rw: 'M',
  randread: 'r',
  randwrite: 'w',
  randrw: 'm',
};

const NOTHING: Sample = { timeMs: 0, readIos: 0, writeIos: 0, readBytes: 0, writeBytes: 0 };

/** Where the line goes: process.stderr. */
export interface StatusStream {
  isTTY?: boolean;
  columns?: number;
  write(text: string): unknown;
}

export class StatusLine {
  private last: readonly Sample[] = [];
  private shown = false;

  constructor(
    private readonly jobs: readonly JobOptions[],
    private readonly stream: StatusStream = process.stderr,
  ) {}

  /** Shows progress; `samples` holds the newest sample of each job. Fits runJobs' onSample. */
  update(samples: readonly Sample[]): void {
    if (this.stream.isTTY !== true) return;
    this.show(statusText(this.jobs, this.last, samples));
    this.last = samples.map((sample) => ({ ...sample }));
  }

  /** Shows a line of text in its place, until the next update. */
  note(text: string): void {
    if (this.stream.isTTY === true) this.show(text);
  }

  /** Takes the line away. */
  clear(): void {
    if (this.shown) this.stream.write('\r\x1b[K');
    this.shown = false;
  }

  private show(text: string): void {
    // A longer line would wrap, and \r would then rewrite its last part only.
    this.stream.write(`\r${text.slice(0, (this.stream.columns ?? 80) - 1)}\x1b[K`);
    this.shown = true;
  }
}

/** The line's text; rates are those since `last`. */
export function statusText(
  jobs: readonly JobOptions[],
  last: readonly Sample[],
  now: readonly Sample[],
): string {
  const workers = jobs.reduce((sum, job) => sum + job.numjobs, 0);
  const letters = jobs.map((job) => `${LETTERS[job.rw]}(${job.numjobs})`).join(',');
  const { share, leftSeconds } = progress(jobs, now);
  const percent = share === null ? '-.-%' : `${(100 * share).toFixed(1)}%`;
  return (
    `Jobs: ${workers} (f=${workers}): [${letters}][${percent}]${rates(last, now)}` +
    `[eta ${leftSeconds === null ? '--m:--s' : clock(leftSeconds)}]`
  );
}

function rates(last: readonly Sample[], now: readonly Sample[]): string {
  let [readIops, writeIops, readBytes, writeBytes] = [0, 0, 0, 0];
  now.forEach((sample, index) => {
    const before = last[index] ?? NOTHING;
    const seconds = (sample.timeMs - before.timeMs) / 1000;
    if (seconds <= 0) return;
    // Counts fall where counting begins anew after the ramp.
    readIops += Math.max(0, sample.readIos - before.readIos) / seconds;
    writeIops += Math.max(0, sample.writeIos - before.writeIos) / seconds;
    readBytes += Math.max(0, sample.readBytes - before.readBytes) / seconds;
    writeBytes += Math.max(0, sample.writeBytes - before.writeBytes) / seconds;
  });
  const bandwidths: string[] = [];
  const counts: string[] = [];
  if (readIops > 0 || writeIops === 0) {
    bandwidths.push(`r=${scaleBytes(readBytes)}/s`);
    counts.push(`r=${scaleCount(readIops)}`);
  }
  if (writeIops > 0) {
    bandwidths.push(`w=${scaleBytes(writeBytes)}/s`);
    counts.push(`w=${scaleCount(writeIops)}`);
  }
  return `[${bandwidths.join(',')}][${counts.join(',')} IOPS]`;
}

/** How far the slowest job is, by time or by bytes; null where neither end is known. */
function progress(
  jobs: readonly JobOptions[],
  now: readonly Sample[],
): { share: number | null; leftSeconds: number | null } {
  let share: number | null = null;
  let leftSeconds: number | null = null;
  jobs.forEach((job, index) => {
    const sample = now[index] ?? NOTHING;
    const bytesTotal = (job.ioSize > 0 ? job.ioSize : job.size) * job.numjobs;
    let done: number;
    if (job.runtime > 0) done = sample.timeMs / (job.runtime * 1000);
    else if (bytesTotal > 0) done = (sample.readBytes + sample.writeBytes) / bytesTotal;
    else return;
    done = Math.min(1, done);
    share = share === null ? done : Math.min(share, done);
    if (done <= 0) return;
    const left = ((sample.timeMs / 1000) * (1 - done)) / done;
    leftSeconds = Math.max(leftSeconds ?? 0, left);
  });
  return { share, leftSeconds };
}

function clock(seconds: number): string {
  const whole = Math.ceil(seconds);
  const two = (value: number): string => String(value).padStart(2, '0');
  if (whole < 3600) return `${two(Math.floor(whole / 60))}m:${two(whole % 60)}s`;
  return `${two(Math.floor(whole / 3600))}h:${two(Math.floor(whole / 60) % 60)}m`;
}
