// Writes trace records behind the hot path's back.
//
// Records go into one of CHUNKS preallocated chunks; a full chunk is written by an asynchronous
// fs.write while the next is filled. Invariants: a chunk is being filled, being written or free;
// a failed or slow disk never stops or fails an operation: records that find no chunk are
// counted as lost, and a LOST record stands where they would have been.

import { close, openSync, write, writeSync } from 'node:fs';
import { promisify } from 'node:util';
import { PenstockError } from '../../errors.js';
import { native } from '../../native.js';
import type { DeviceInfo } from '../../hpdi/index.js';
import { encodeHeader, RECORD_BYTES, Trace, TRACE_VERSION, TraceKind } from './format.js';

const CHUNKS = 8;
const CHUNK_RECORDS = 4096;
const CHUNK_BYTES = CHUNK_RECORDS * RECORD_BYTES;
const TWO_32 = 2 ** 32;

const closeFile = promisify(close);

export class TraceWriter {
  readonly file: string;
  /** Records written or on their way, and records lost. */
  records = 0;
  lost = 0;
  /** Words of the record that `next` gave, and where it begins in them. */
  words: Uint32Array;
  /** Nanoseconds since the trace began, as of the last `stamp`. */
  nowNs = 0;
  private readonly fd: number;
  private readonly chunks: Uint32Array[] = [];
  private readonly bytes: Uint8Array[] = [];
  private readonly free: number[] = [];
  private current = 0;
  private filled = 0;
  private lostHere = 0;
  private writesOut = 0;
  private position: number;
  private failure: NodeJS.ErrnoException | null = null;
  private idle: (() => void) | null = null;
  private readonly clockWords: Uint32Array;
  private readonly readClock: () => void;
  private readonly startTicks: number;
  private readonly nsPerTick: number;

  constructor(file: string, uri: string, info: DeviceInfo) {
    this.file = file;
    const tscHertz = native.tscHertz();
    this.nsPerTick = 1e9 / tscHertz;
    const clock = native.tscClock();
    this.clockWords = new Uint32Array(clock.words);
    this.readClock = clock.read;
    this.readClock();
    this.startTicks = this.clockWords[1]! * TWO_32 + this.clockWords[0]!;
    const header = encodeHeader({
      version: TRACE_VERSION,
      tscHertz,
      startMs: Date.now(),
      uri,
      info,
    });
    try {
      this.fd = openSync(file, 'w', 0o644);
      this.position = writeSync(this.fd, header);
    } catch (cause) {
      throw new PenstockError('TRACE_FAILED', `the trace '${file}' cannot be written`, {
        hint: 'trace.to takes a file in a folder that exists and may be written.',
        cause,
      });
    }
    for (let i = 0; i < CHUNKS; i++) {
      const buffer = new ArrayBuffer(CHUNK_BYTES);
      this.chunks.push(new Uint32Array(buffer));
      this.bytes.push(new Uint8Array(buffer));
      if (i > 0) this.free.push(i);
    }
    this.words = this.chunks[0]!;
  }

  /** Reads the clock; once per batch. */
  stamp(): void {
    this.readClock();
    const ticks = this.clockWords[1]! * TWO_32 + this.clockWords[0]!;
    this.nowNs = Math.round((ticks - this.startTicks) * this.nsPerTick);
  }

  /** Place in `words` of a fresh record with kind and time filled in; -1 when it is lost. */
  next(kind: number): number {
    if (this.filled === CHUNK_RECORDS && !this.turn()) {
      this.lost++;
      this.lostHere++;
      return -1;
    }
    if (this.lostHere > 0) {
      const at = this.place(TraceKind.LOST);
      this.words[at + Trace.status] = this.lostHere;
      this.lostHere = 0;
      if (this.filled === CHUNK_RECORDS) return this.next(kind);
    }
    return this.place(kind);
  }

  /** Writes what is left and closes the file; throws TRACE_FAILED when records were lost. */
  async close(): Promise<void> {
    if (this.filled > 0) this.write(this.current, this.filled);
    this.filled = 0;
    while (this.writesOut > 0) await new Promise<void>((resolve) => (this.idle = resolve));
    await closeFile(this.fd);
    if (this.failure === null && this.lost === 0) return;
    throw new PenstockError(
      'TRACE_FAILED',
      `the trace '${this.file}' is incomplete: ${this.lost} records were lost`,
      {
        hint:
          this.failure === null
            ? 'The disk did not keep up: trace to a faster one, or to /dev/shm.'
            : 'Make room on the disk of the trace, or trace to another one.',
        cause: this.failure ?? undefined,
      },
    );
  }

  private place(kind: number): number {
    const at = this.filled * Trace.words;
    this.filled++;
    this.records++;
    const words = this.words;
    words.fill(0, at, at + Trace.words);
    words[at + Trace.kind] = kind;
    words[at + Trace.timeLo] = this.nowNs >>> 0;
    words[at + Trace.timeHi] = Math.floor(this.nowNs / TWO_32);
    return at;
  }

  /** Sends the full chunk off and takes a free one; false when there is none. */
  private turn(): boolean {
    const next = this.free.pop();
    if (next === undefined) return false;
    this.write(this.current, CHUNK_RECORDS);
    this.current = next;
    this.words = this.chunks[next]!;
    this.filled = 0;
    return true;
  }

  /** One closure per chunk of 4096 records, not per record. */
  private write(chunk: number, records: number, offset = 0): void {
    const bytes = records * RECORD_BYTES;
    if (this.failure !== null) {
      this.drop(chunk, records);
      return;
    }
    this.writesOut++;
    const position = this.position;
    this.position += bytes;
    this.writeAll(chunk, records, offset, position);
  }

  private writeAll(chunk: number, records: number, offset: number, position: number): void {
    const end = records * RECORD_BYTES;
    const view = this.bytes[chunk]!;
    write(this.fd, view, offset, end - offset, position + offset, (error, written) => {
      if (error === null && written > 0 && offset + written < end) {
        this.writeAll(chunk, records, offset + written, position);
        return;
      }
      this.writesOut--;
      if (error !== null || written === 0) {
        this.failure ??= error ?? new Error('nothing was written');
        this.drop(chunk, records);
      } else {
        this.free.push(chunk);
      }
      if (this.writesOut === 0) this.idle?.();
    });
  }

  private drop(chunk: number, records: number): void {
    this.lost += records;
    this.records -= records;
    this.free.push(chunk);
  }
}
