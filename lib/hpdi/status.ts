// Status words decoded for people: name, meaning, hint; and the error a promise rejects with.

import { PenstockError } from '../errors.js';
import { STATUS, Status } from './records.js';

/** What `device.explain(status)` gives. */
export interface Explanation {
  /** The stable code, as in errors: `MEDIA_ERROR`. */
  code: string;
  /** What the code means, with the driver's detail decoded. */
  message: string;
  hint: string;
  /** The driver's own number (errno, NVMe status), 0 when there is none. */
  detail: number;
}

const TEXTS: Readonly<Record<number, readonly [string, string]>> = {
  [Status.OK]: ['the operation succeeded', ''],
  [Status.BAD_ADDRESS]: [
    'the buffer does not lie in live memory of the address space',
    'use a buffer from device.memory.alloc that has not been freed; address 0 is never valid',
  ],
  [Status.BAD_RANGE]: [
    'the blocks lie outside the device',
    'lba + blocks must not exceed info.blocks; the device may have shrunk',
  ],
  [Status.BAD_REQUEST]: [
    'the request record is malformed',
    'check operation, flags and that blocks is from 1 on',
  ],
  [Status.UNSUPPORTED]: [
    'the device does not do this operation',
    'info.operations has a bit for each one it does',
  ],
  [Status.TOO_LARGE]: [
    'the request exceeds the device limit',
    'keep to info.maxTransferBlocks, or open the queue with split: true',
  ],
  [Status.MISALIGNED]: [
    'the buffer is not aligned as the device wants it',
    'align to info.addressAlign, or open the queue with split: true',
  ],
  [Status.MEDIA_ERROR]: [
    'the device could not read or write the data',
    'the medium or the file system under it reports damage: see the kernel log and the detail',
  ],
  [Status.NO_SPACE]: [
    'no space is left for the write',
    'free space under the device; nothing of this write counts as written',
  ],
  [Status.READ_ONLY]: [
    'the device is read-only',
    'open it without readonly=1, with write permission',
  ],
  [Status.DEVICE_GONE]: [
    'the device, or the thread that owned it, is gone',
    'open the device again; operations in flight may or may not have taken effect',
  ],
  [Status.TIMED_OUT]: [
    'the device did not answer in time',
    'it may be overloaded or stuck; see the counters and the kernel log',
  ],
  [Status.ABORTED]: [
    'the operation was aborted',
    'the queue was closed or reset while it was in flight',
  ],
  [Status.MISCOMPARE]: [
    'the blocks differ from the buffer',
    'resultLo and resultHi hold the first differing byte',
  ],
  [Status.BAD_LOAN]: [
    'the loan is not out',
    'release each loan once, by the words of its completion',
  ],
  [Status.NO_MEMORY]: [
    'no memory for the operation',
    'free buffers, release loans, or lower the depth',
  ],
  [Status.DENIED]: [
    'the operation is not permitted',
    'check the permissions of the file or device',
  ],
  [Status.BUSY]: ['the device is busy', 'retry; somebody else may hold it'],
  [Status.DEVICE_ERROR]: ['the device reported an error', 'the detail says which'],
};

const NAMES = new Map<number, string>(Object.entries(STATUS).map(([name, code]) => [code, name]));

/** Decodes a status word; `detailText` turns the driver's detail bits into words. */
export function explainStatus(
  status: number,
  detailText: (code: number, detail: number) => string = () => '',
): Explanation {
  const code = status & 0xff;
  const detail = status >>> 8;
  const [meaning, hint] = TEXTS[code] ?? [
    `unknown status ${code}`,
    'this version does not know it',
  ];
  const extra = detail === 0 ? '' : detailText(code, detail);
  const message = extra === '' ? meaning : `${meaning} (${extra})`;
  return { code: NAMES.get(code) ?? `STATUS_${code}`, message, hint, detail };
}

/** The error of a failed operation. */
export function statusError(what: string, explanation: Explanation): PenstockError {
  return new PenstockError(explanation.code, `${what}: ${explanation.message}`, {
    hint: explanation.hint,
  });
}
