// Reads a trace back, record by record. A last record that was cut short is left out.

import { open, type FileHandle } from 'node:fs/promises';
import { PenstockError } from '../../errors.js';
import {
  decodeHeader,
  headerBytes,
  RECORD_BYTES,
  Trace,
  TraceKind,
  type TraceHeader,
} from './format.js';

const READ_RECORDS = 4096;
const TWO_32 = 2 ** 32;

export interface TraceRecord {
  readonly kind: 'submit' | 'complete' | 'lost';
  readonly queue: number;
  /** The same in an operation's submission and completion. */
  readonly serial: number;
  readonly timeNs: number;
  /** Operation code, flags (as in the `op` word) and SG entries. */
  readonly op: number;
  readonly flags: number;
  readonly segments: number;
  readonly tag: number;
  readonly blocks: number;
  readonly lba: number;
  /** Address of the buffer; the source block of COPY. */
  readonly address: number;
  /** Submission only; 0 otherwise. */
  readonly aux: number;
  /** Completion only; 0 otherwise. */
  readonly status: number;
  readonly latencyNs: number;
  readonly resultLo: number;
  readonly resultHi: number;
  /** Records missing here (`lost` only). */
  readonly lost: number;
}

/** An open trace: its header, and its records by `for await`. */
export class TraceReader implements AsyncIterable<TraceRecord> {
  readonly header: TraceHeader;
  private readonly handle: FileHandle;
  private readonly start: number;

  constructor(handle: FileHandle, header: TraceHeader, start: number) {
    this.handle = handle;
    this.header = header;
    this.start = start;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<TraceRecord> {
    const bytes = Buffer.alloc(READ_RECORDS * RECORD_BYTES);
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    let position = this.start;
    for (;;) {
      const got = await readFully(this.handle, bytes, position);
      const records = Math.floor(got / RECORD_BYTES);
      for (let i = 0; i < records; i++) yield decode(words, i * Trace.words);
      if (got < bytes.length) return;
      position += got;
    }
  }

  async close(): Promise<void> {
    await this.handle.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** Opens a trace; BAD_TRACE when the file is none, TRACE_FAILED when it cannot be read. */
export async function readTrace(file: string): Promise<TraceReader> {
  let handle: FileHandle;
  try {
    handle = await open(file, 'r');
  } catch (cause) {
    throw new PenstockError('TRACE_FAILED', `the trace '${file}' cannot be read`, {
      hint: 'Give the file that trace.to named.',
      cause,
    });
  }
  try {
    const first = Buffer.alloc(4096);
    const got = await readFully(handle, first, 0);
    const bytes = headerBytes(first.subarray(0, got), file);
    const header = Buffer.alloc(bytes);
    const whole = await readFully(handle, header, 0);
    return new TraceReader(handle, decodeHeader(header.subarray(0, whole), file), bytes);
  } catch (error) {
    await handle.close();
    throw error;
  }
}

async function readFully(handle: FileHandle, into: Buffer, position: number): Promise<number> {
  let got = 0;
  while (got < into.length) {
    const { bytesRead } = await handle.read(into, got, into.length - got, position + got);
    if (bytesRead === 0) break;
    got += bytesRead;
  }
  return got;
}

function decode(words: Uint32Array, at: number): TraceRecord {
  const wide = (lo: number): number => words[at + lo + 1]! * TWO_32 + words[at + lo]!;
  const kind = words[at + Trace.kind]!;
  const code = kind & 0xff;
  const op = words[at + Trace.op]!;
  const word7 = words[at + Trace.status]!;
  return {
    kind: code === TraceKind.SUBMIT ? 'submit' : code === TraceKind.COMPLETE ? 'complete' : 'lost',
    queue: kind >>> 8,
    serial: words[at + Trace.serial]!,
    timeNs: wide(Trace.timeLo),
    op: op & 0xff,
    flags: op & 0xff00,
    segments: op >>> 16,
    tag: words[at + Trace.tag]!,
    blocks: words[at + Trace.blocks]!,
    lba: wide(Trace.lbaLo),
    address: wide(Trace.addressLo),
    aux: code === TraceKind.SUBMIT ? word7 : 0,
    status: code === TraceKind.COMPLETE ? word7 : 0,
    latencyNs: wide(Trace.latencyLo),
    resultLo: words[at + Trace.resultLo]!,
    resultHi: words[at + Trace.resultHi]!,
    lost: code === TraceKind.LOST ? word7 : 0,
  };
}
