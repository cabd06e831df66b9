// Status fields of completions, decoded for people (decodeStatus) and for the data path
// (hpdiStatus). NVM Express Base 2.0, section 3.3.3.2.1.
//
// `sf` is the 15-bit status field without its phase bit: SC | SCT << 8 | CRD << 11 | M << 13 |
// DNR << 14, that is, the completion's last word >>> 17.

import { Status } from '../../hpdi/index.js';
import { layout } from '../../wire/index.js';
import { COMMAND_STATUS } from './status-command.js';
import { GENERIC_STATUS, MEDIA_STATUS, PATH_STATUS, type StatusRow } from './status-generic.js';
import { bits } from './table.js';

/** Bits of a status field without its phase bit. */
export const enum Sf {
  SC_MASK = 0xff,
  SCT_SHIFT = 8,
  SCT_MASK = 0x7 << 8,
  /** SC and SCT: what `hpdiStatus` and the table go by. */
  CODE_MASK = 0x7ff,
  CRD_SHIFT = 11,
  CRD_MASK = 0x3 << 11,
  MORE = 1 << 13,
  DNR = 1 << 14,
}

/** Codes that the driver itself has to tell apart: SC | SCT << 8. */
export const enum Sc {
  SUCCESS = 0x000,
  INVALID_OPCODE = 0x001,
  INVALID_FIELD = 0x002,
  ABORT_REQ = 0x007,
  ABORT_QUEUE = 0x008,
  INVALID_NS = 0x00b,
  LBA_RANGE = 0x080,
  CAP_EXCEEDED = 0x081,
  NS_NOT_READY = 0x082,
  ABORT_LIMIT = 0x103,
  ASYNC_LIMIT = 0x105,
  INVALID_LOG_PAGE = 0x109,
  COMPARE_FAILED = 0x285,
  UNWRITTEN_BLOCK = 0x287,
}

export const enum Sct {
  GENERIC = 0,
  COMMAND = 1,
  MEDIA = 2,
  PATH = 3,
  VENDOR = 7,
}

export interface NvmeStatus {
  /** `LBA_RANGE`; `VENDOR_0x7c2` and `UNKNOWN_0x1f0` (SCT and SC) where the standard has none. */
  readonly name: string;
  readonly meaning: string;
  /** What to do about it; '' where there is nothing to say. */
  readonly hint: string;
  readonly sct: number;
  readonly sc: number;
  /** Index of the retry delay (CRDT1 to CRDT3 of Identify Controller), 0 for none. */
  readonly crd: number;
  /** The error information log has more about it. */
  readonly more: boolean;
  /** The same command would fail again. */
  readonly dnr: boolean;
}

export const STATUS_LAYOUT = layout(
  'nvme status field',
  4,
  'NVMe Base 2.0, 3.3.3.2.1',
  bits([
    ['sc', 0, 7, 'status code'],
    ['sct', 8, 10, 'type: 0 generic, 1 command, 2 media, 3 path, 7 vendor'],
    ['crd', 11, 12, 'retry delay'],
    ['more', 13, 13, 'the error log has more'],
    ['dnr', 14, 14, 'do not retry'],
  ]),
);

const TYPES: readonly (readonly [number, readonly StatusRow[]])[] = [
  [Sct.GENERIC, GENERIC_STATUS],
  [Sct.COMMAND, COMMAND_STATUS],
  [Sct.MEDIA, MEDIA_STATUS],
  [Sct.PATH, PATH_STATUS],
];

const rowsByCode = new Map<number, StatusRow>();
const hpdiByCode = new Uint8Array(2048).fill(Status.DEVICE_ERROR);
for (const [sct, list] of TYPES) {
  for (const row of list) {
    rowsByCode.set((sct << Sf.SCT_SHIFT) | row[0], row);
    hpdiByCode[(sct << Sf.SCT_SHIFT) | row[0]] = row[4];
  }
}

/** The HPDI status of a status field: one load. What the standard does not name: DEVICE_ERROR. */
export function hpdiStatus(sf: number): Status {
  return hpdiByCode[sf & Sf.CODE_MASK]!;
}

/** Decodes a status field. */
export function decodeStatus(sf: number): NvmeStatus {
  const sc = sf & Sf.SC_MASK;
  const sct = (sf & Sf.SCT_MASK) >>> Sf.SCT_SHIFT;
  const [name, meaning, hint] = textsOf(sf & Sf.CODE_MASK, sct);
  return {
    name,
    meaning,
    hint,
    sct,
    sc,
    crd: (sf & Sf.CRD_MASK) >>> Sf.CRD_SHIFT,
    more: (sf & Sf.MORE) !== 0,
    dnr: (sf & Sf.DNR) !== 0,
  };
}

function textsOf(code: number, sct: number): readonly [string, string, string] {
  const row = rowsByCode.get(code);
  if (row !== undefined) return [row[1], row[2], row[3]];
  const hex = `0x${code.toString(16).padStart(3, '0')}`;
  if (sct === (Sct.VENDOR as number) || (code & 0xff) >= 0xc0) {
    return [`VENDOR_${hex}`, 'a status of the vendor', "see the drive's manual"];
  }
  return [`UNKNOWN_${hex}`, 'a status that the standard does not name', ''];
}

/** `LBA_RANGE (0x080, do not retry): the blocks lie outside the namespace`. */
export function statusText(sf: number): string {
  const { name, meaning, dnr, more } = decodeStatus(sf);
  const code = `0x${(sf & Sf.CODE_MASK).toString(16).padStart(3, '0')}`;
  const extras = [code, ...(dnr ? ['do not retry'] : []), ...(more ? ['more in error-log'] : [])];
  return `${name} (${extras.join(', ')}): ${meaning}`;
}

/** Every status that the standard names, in order of type and code. */
export function allStatuses(): NvmeStatus[] {
  return [...rowsByCode.keys()].map((code) => decodeStatus(code));
}
