// Status fields: names, meanings, and what becomes of them on the data path.

import { describe, expect, it } from 'vitest';
import * as status from '../../../lib/drivers/nvme/status.js';
import { STATUS } from '../../../lib/hpdi/index.js';

const { allStatuses, decodeStatus, hpdiStatus, statusText } = status;
const ALL = Array.from({ length: 2048 }, (_, code) => code);

describe('a status field', () => {
  it('decodes whatever it is', () => {
    for (let sf = 0; sf < 1 << 15; sf++) {
      const { name, meaning, sc, sct, crd, more, dnr } = decodeStatus(sf);
      expect(name).toMatch(/^(?:[A-Z][A-Z0-9_]+|(?:VENDOR|UNKNOWN)_0x[0-9a-f]{3})$/);
      expect(meaning).not.toBe('');
      const again = sc | (sct << 8) | (crd << 11) | (Number(more) << 13) | (Number(dnr) << 14);
      expect(again).toBe(sf);
    }
  });

  it.each([
    [0x0000, 'SUCCESS'],
    [0x0002, 'INVALID_FIELD'],
    [0x000b, 'INVALID_NS'],
    [0x0080, 'LBA_RANGE'],
    [0x0081, 'CAP_EXCEEDED'],
    [0x0101, 'QID_INVALID'],
    [0x0109, 'INVALID_LOG_PAGE'],
    [0x0182, 'READ_ONLY'],
    [0x01bc, 'ZONE_INVALID_WRITE'],
    [0x0280, 'WRITE_FAULT'],
    [0x0281, 'READ_ERROR'],
    [0x0285, 'COMPARE_FAILED'],
    [0x0303, 'ANA_TRANSITION'],
    [0x07c2, 'VENDOR_0x7c2'],
    [0x00c1, 'VENDOR_0x0c1'],
    [0x0470, 'UNKNOWN_0x470'],
  ])('%i is %s', (sf, name) => {
    expect(decodeStatus(sf).name).toBe(name);
    expect(decodeStatus(sf | 0x4000)).toMatchObject({ name, dnr: true });
  });

  it('reads as one line', () => {
    expect(statusText(0x4080)).toBe(
      'LBA_RANGE (0x080, do not retry): the blocks lie outside the namespace',
    );
    expect(statusText(0x2006)).toContain('more in error-log');
  });

  it('has no name twice', () => {
    const names = allStatuses().map(({ name }) => name);
    expect(names.length).toBeGreaterThan(100);
    expect(names.filter((name, index) => names.indexOf(name) !== index)).toEqual([]);
  });
});

describe('on the data path', () => {
  it('is a known status for every code, and OK for success alone', () => {
    const known = new Set<number>(Object.values(STATUS));
    for (const code of ALL) expect(known.has(hpdiStatus(code))).toBe(true);
    expect(ALL.filter((code) => hpdiStatus(code) === STATUS.OK)).toEqual([0]);
    expect(hpdiStatus(0x6080)).toBe(hpdiStatus(0x0080));
  });

  it.each<[number, keyof typeof STATUS]>([
    [0x080, 'BAD_RANGE'],
    [0x280, 'MEDIA_ERROR'],
    [0x281, 'MEDIA_ERROR'],
    [0x285, 'MISCOMPARE'],
    [0x081, 'NO_SPACE'],
    [0x002, 'BAD_REQUEST'],
    [0x001, 'UNSUPPORTED'],
    [0x007, 'ABORTED'],
    [0x008, 'ABORTED'],
    [0x020, 'READ_ONLY'],
    [0x182, 'READ_ONLY'],
    [0x286, 'DENIED'],
    [0x004, 'BAD_ADDRESS'],
    [0x013, 'MISALIGNED'],
    [0x082, 'BUSY'],
    [0x014, 'TOO_LARGE'],
    [0x006, 'DEVICE_ERROR'],
    [0x7ff, 'DEVICE_ERROR'],
  ])('%i becomes %s', (code, name) => {
    expect(hpdiStatus(code)).toBe(STATUS[name]);
  });

  it('names the codes that the driver tells apart as the table does', () => {
    const { Sc } = status as unknown as { Sc: Record<string, number> };
    const named = Object.entries(Sc).filter(([key]) => !/^\d+$/.test(key));
    expect(named.length).toBeGreaterThan(5);
    for (const [name, code] of named) {
      expect(decodeStatus(code).name).toBe(name);
    }
  });
});
