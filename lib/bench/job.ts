// What a job means on a given device: checks of the options, the units it covers, each worker's
// share.
//
// Units are `bs` bytes from `offset` on. Workers of a verified job have disjoint regions, so that
// every unit has one writer; otherwise each worker covers the whole range, as in fio.

import { PenstockError } from '../errors.js';
import type { DeviceInfo } from '../hpdi/index.js';
import { parseDistribution } from './distribution.js';
import type { JobOptions } from './types.js';
import { isRandom, readPercent } from './workload.js';

const DIRECTIONS = ['read', 'write', 'randread', 'randwrite', 'rw', 'randrw'];
const WORKERS_MAX = 256;
const DEPTH_MAX = 32768;
/** A verified writer keeps five bytes a unit. */
const VERIFIED_UNITS_MAX = 2 ** 28;

/** The units of a job, in device blocks. */
export interface Geometry {
  readonly blockSize: number;
  readonly unitBlocks: number;
  readonly firstBlock: number;
  readonly units: number;
}

/** One worker's part. */
export interface Share {
  readonly worker: number;
  readonly firstBlock: number;
  readonly units: number;
  /** Operations it issues; Infinity: until the deadline. */
  readonly operations: number;
}

function bad(message: string, hint: string): PenstockError {
  return new PenstockError('BAD_OPTION', message, { hint, exitCode: 2 });
}

/** Checks what needs no device. BAD_OPTION with the option's name. */
export function checkJob(job: JobOptions): void {
  if (!DIRECTIONS.includes(job.rw)) {
    throw bad(`rw '${String(job.rw)}' is not a workload`, `one of ${DIRECTIONS.join(', ')}`);
  }
  integer('bs', job.bs, 512, 2 ** 30);
  integer('iodepth', job.iodepth, 1, DEPTH_MAX);
  integer('numjobs', job.numjobs, 1, WORKERS_MAX);
  integer('size', job.size, 0, Number.MAX_SAFE_INTEGER);
  integer('offset', job.offset, 0, Number.MAX_SAFE_INTEGER);
  integer('io-size', job.ioSize, 0, Number.MAX_SAFE_INTEGER);
  integer('seed', job.seed, 0, Number.MAX_SAFE_INTEGER);
  range('rwmixread', job.rwmixread, 0, 100);
  range('dedupe-percentage', job.dedupePercentage, 0, 100);
  range('runtime', job.runtime, 0, 1e9);
  range('ramp-time', job.rampTime, 0, 1e9);
  range('rate-iops', job.rateIops, 0, 1e9);
  parseDistribution(job.randomDistribution);
}

function integer(name: string, value: number, min: number, max: number): void {
  if (Number.isInteger(value) && value >= min && value <= max) return;
  throw bad(`${name} ${value} is out of range`, `an integer from ${min} to ${max}`);
}

function range(name: string, value: number, min: number, max: number): void {
  if (value >= min && value <= max) return;
  throw bad(`${name} ${value} is out of range`, `a number from ${min} to ${max}`);
}

/** The job's units on a device. BAD_OPTION where they do not fit. */
export function geometryOf(job: JobOptions, info: DeviceInfo): Geometry {
  const { blockSize } = info;
  const capacity = info.blocks * blockSize;
  if (job.bs % blockSize !== 0) {
    throw bad(
      `bs ${job.bs} is not a multiple of the device's block size, ${blockSize}`,
      `give a bs of ${Math.ceil(job.bs / blockSize) * blockSize}`,
    );
  }
  if (job.offset % blockSize !== 0) {
    throw bad(
      `offset ${job.offset} is not a multiple of the device's block size, ${blockSize}`,
      `round it to ${Math.floor(job.offset / blockSize) * blockSize}`,
    );
  }
  if (job.offset + job.size > capacity) {
    throw bad(
      `offset and size reach byte ${job.offset + job.size}; the device has ${capacity}`,
      'make size smaller, or leave it out to use the device to its end',
    );
  }
  const bytes = job.size === 0 ? capacity - job.offset : job.size;
  const units = Math.floor(bytes / job.bs);
  if (units < 1) {
    throw bad(`not one operation of ${job.bs} bytes fits`, 'make bs smaller or size larger');
  }
  const writes = readPercent(job.rw, job.rwmixread) < 100;
  if (writes && info.readOnly) {
    throw new PenstockError('READ_ONLY', `${job.uri} cannot be written`, {
      hint: 'use rw read or randread, or open a device that can be written',
    });
  }
  if (job.verify) checkVerify(job, units, writes);
  return { blockSize, unitBlocks: job.bs / blockSize, firstBlock: job.offset / blockSize, units };
}

function checkVerify(job: JobOptions, units: number, writes: boolean): void {
  if (units < job.numjobs) {
    throw bad(
      `a verified job needs at least one unit for each of its ${job.numjobs} workers`,
      'give fewer numjobs or a larger size',
    );
  }
  if (writes && units / job.numjobs > VERIFIED_UNITS_MAX) {
    throw bad(
      `a verified job keeps a word for each unit, at most ${VERIFIED_UNITS_MAX} a worker`,
      'give a size, or a larger bs',
    );
  }
}

/** The part of worker `worker` (from 0). */
export function shareOf(job: JobOptions, geometry: Geometry, worker: number): Share {
  let first = 0;
  let units = geometry.units;
  if (job.verify) {
    first = Math.floor((geometry.units * worker) / job.numjobs);
    units = Math.floor((geometry.units * (worker + 1)) / job.numjobs) - first;
  }
  const limit = job.ioSize > 0 ? Math.max(1, Math.floor(job.ioSize / job.bs)) : units;
  const endless = job.runtime > 0 && job.ioSize === 0;
  return {
    worker,
    firstBlock: geometry.firstBlock + first * geometry.unitBlocks,
    units,
    operations: endless ? Infinity : limit,
  };
}

/** A verified uniform random writer takes every unit once per pass: a full pass covers all. */
export function isShuffled(job: JobOptions): boolean {
  return (
    job.verify && isRandom(job.rw) && job.randomDistribution === 'random' && job.rw !== 'randrw'
  );
}
