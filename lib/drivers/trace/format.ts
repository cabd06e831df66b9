// The trace file: a header, then records of 64 bytes, all little-endian (docs/trace-format.md).
//
// The hot form is the const enum of word indices, the cold form `TRACE_RECORD`, from which the
// page and the tests work. A test holds both equal.

import { PenstockError } from '../../errors.js';
import type { DeviceInfo } from '../../hpdi/index.js';

/** First eight bytes of a trace file. */
export const TRACE_MAGIC = 'PENSTRCE';
export const TRACE_VERSION = 1;
export const RECORD_BYTES = 64;

/** Word indices of a record. Values of two words are low word first. */
export const enum Trace {
  /** Kind | queue << 8. */
  kind = 0,
  /** Number of the operation, the same in its submission and its completion; wraps at 2^32. */
  serial = 1,
  timeLo = 2,
  timeHi = 3,
  op = 4,
  tag = 5,
  blocks = 6,
  /** Submission: aux. Completion: status. LOST: records lost. */
  status = 7,
  lbaLo = 8,
  lbaHi = 9,
  addressLo = 10,
  addressHi = 11,
  /** Completion only. */
  latencyLo = 12,
  latencyHi = 13,
  resultLo = 14,
  resultHi = 15,
  words = 16,
}

export const enum TraceKind {
  SUBMIT = 1,
  COMPLETE = 2,
  /** Records are missing here because the disk did not keep up. */
  LOST = 3,
}

/** Words of a record by name, index and meaning; the file format's table. */
export const TRACE_RECORD: readonly { name: string; word: number; meaning: string }[] =
  Object.freeze([
    { name: 'kind', word: 0, meaning: '1 submit, 2 complete, 3 lost; | number of the queue << 8' },
    { name: 'serial', word: 1, meaning: 'number of the operation, modulo 2^32' },
    { name: 'timeLo', word: 2, meaning: 'nanoseconds since the trace began, low word' },
    { name: 'timeHi', word: 3, meaning: 'the same, high word' },
    { name: 'op', word: 4, meaning: 'operation | flags << 8 | segments << 16' },
    { name: 'tag', word: 5, meaning: "the caller's tag" },
    { name: 'blocks', word: 6, meaning: 'logical blocks' },
    { name: 'status', word: 7, meaning: 'submit: aux; complete: status; lost: records lost' },
    { name: 'lbaLo', word: 8, meaning: 'first logical block, low word' },
    { name: 'lbaHi', word: 9, meaning: 'the same, high word' },
    { name: 'addressLo', word: 10, meaning: 'buffer, SG list, or source block of COPY, low word' },
    { name: 'addressHi', word: 11, meaning: 'the same, high word' },
    {
      name: 'latencyLo',
      word: 12,
      meaning: 'complete: nanoseconds since its submission, low word',
    },
    { name: 'latencyHi', word: 13, meaning: 'the same, high word' },
    { name: 'resultLo', word: 14, meaning: 'complete: result, low word' },
    { name: 'resultHi', word: 15, meaning: 'the same, high word' },
  ]);

export interface TraceHeader {
  readonly version: number;
  readonly tscHertz: number;
  /** Milliseconds since 1970 when the trace began. */
  readonly startMs: number;
  readonly uri: string;
  readonly info: DeviceInfo;
}

/**
 * Bytes 0–7 magic, u32 version, u32 header bytes, u32 record bytes, u32 JSON bytes, f64 tsc
 * hertz, f64 start.
 */
const FIXED_BYTES = 40;

export function encodeHeader(header: TraceHeader): Buffer {
  const json = Buffer.from(JSON.stringify({ uri: header.uri, info: header.info }));
  const bytes = Math.ceil((FIXED_BYTES + json.length) / RECORD_BYTES) * RECORD_BYTES;
  const out = Buffer.alloc(bytes);
  out.write(TRACE_MAGIC, 0, 'latin1');
  out.writeUInt32LE(header.version, 8);
  out.writeUInt32LE(bytes, 12);
  out.writeUInt32LE(RECORD_BYTES, 16);
  out.writeUInt32LE(json.length, 20);
  out.writeDoubleLE(header.tscHertz, 24);
  out.writeDoubleLE(header.startMs, 32);
  json.copy(out, FIXED_BYTES);
  return out;
}

/** Bytes of the header, from its first 16; throws BAD_TRACE when this is no trace. */
export function headerBytes(start: Buffer, file: string): number {
  if (start.length < FIXED_BYTES || start.toString('latin1', 0, 8) !== TRACE_MAGIC) {
    throw badTrace(file, 'it does not begin with the magic of a trace');
  }
  const version = start.readUInt32LE(8);
  if (version !== TRACE_VERSION) throw badTrace(file, `its version is ${version}, not 1`);
  if (start.readUInt32LE(16) !== RECORD_BYTES) throw badTrace(file, 'its records are not 64 bytes');
  const bytes = start.readUInt32LE(12);
  const fits = FIXED_BYTES + start.readUInt32LE(20) <= bytes && bytes <= 2 ** 24;
  if (!fits || bytes % RECORD_BYTES !== 0) throw badTrace(file, 'its header has impossible sizes');
  return bytes;
}

export function decodeHeader(header: Buffer, file: string): TraceHeader {
  const jsonBytes = header.readUInt32LE(20);
  if (FIXED_BYTES + jsonBytes > header.length) throw badTrace(file, 'its header is cut short');
  try {
    const json = header.toString('utf8', FIXED_BYTES, FIXED_BYTES + jsonBytes);
    const { uri, info } = JSON.parse(json) as { uri: string; info: DeviceInfo };
    return {
      version: header.readUInt32LE(8),
      tscHertz: header.readDoubleLE(24),
      startMs: header.readDoubleLE(32),
      uri,
      info,
    };
  } catch (cause) {
    throw badTrace(file, 'its header holds no JSON', cause);
  }
}

function badTrace(file: string, why: string, cause?: unknown): PenstockError {
  return new PenstockError('BAD_TRACE', `'${file}' is not a trace: ${why}`, {
    hint: 'Traces are written by trace.to=FILE on any URI.',
    cause,
  });
}
