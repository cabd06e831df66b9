// The trace wrapper: every operation of a device to a file, readable and replayable (`trace.*`
// keys).

import { PenstockError } from '../../errors.js';
import type { Backend } from '../../hpdi/index.js';
import { checkKeys } from '../../uri.js';
import { TraceDevice } from './device.js';

export { TRACE_RECORD, TRACE_VERSION, type TraceHeader } from './format.js';
export { readTrace, type TraceReader, type TraceRecord } from './reader.js';
export {
  replayTrace,
  type LatencyStatistics,
  type ReplayOptions,
  type ReplayStatistics,
  type ReplayTarget,
} from './replay.js';

/** Keys of `trace.*` with one line of help each. */
export const TRACE_KEYS: Readonly<Record<string, string>> = Object.freeze({
  to: 'file that every operation is written to (required)',
});

/** Throws what wrapTrace would for keys that are not known, or without a file. */
export function checkTrace(options: ReadonlyMap<string, string>): void {
  fileOf(options);
}

/**
 * Wraps a device; `options` are the keys without their `trace.` prefix. `attached` names the
 * environments that attach to a traced device: their operations go to FILE.N.
 */
export function wrapTrace(
  inner: Backend,
  options: ReadonlyMap<string, string>,
  attached = '',
): Backend {
  const file = fileOf(options);
  return new TraceDevice(inner, attached === '' ? file : `${file}.${attached}`);
}

function fileOf(options: ReadonlyMap<string, string>): string {
  checkKeys({ scheme: 'trace', query: options }, Object.keys(TRACE_KEYS), 'trace.');
  const file = options.get('to') ?? '';
  if (file !== '') return file;
  throw new PenstockError('BAD_URI', 'a traced device needs trace.to=FILE', {
    hint: 'Name the file to write, such as trace.to=/tmp/run.trace.',
    exitCode: 2,
  });
}
