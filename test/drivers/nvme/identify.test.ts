// Identify pages and lists: golden pages with known offsets, and pages that lie.

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { checkController, parseController } from '../../../lib/drivers/nvme/identify-controller.js';
import * as lists from '../../../lib/drivers/nvme/identify-lists.js';
import * as namespaces from '../../../lib/drivers/nvme/identify-namespace.js';
import { quirksOf, QUIRKS, stripeBytes } from '../../../lib/drivers/nvme/quirks.js';
import { pageOf, randomBytes } from '../../support/nvme-pages.js';

type Fields = Parameters<typeof pageOf>[1];

/** What is the same in every I/O controller. */
const SANE: Fields = [
  [4, 20, 'S123'],
  [24, 40, 'A model'],
  [64, 8, '1.0'],
  [512, 1, 0x66],
  [513, 1, 0x44],
  [516, 4, 256],
];

const page = (fields: Fields): Uint8Array => pageOf(4096, fields);
const pages = fc.uint8Array({ minLength: 4096, maxLength: 4096 });

describe('Identify Controller', () => {
  it('is read by the offsets of the standard', () => {
    const controller = parseController(
      page([
        ...SANE,
        [0, 2, 0x1b36],
        [73, 3, 0x525400],
        [77, 1, 7],
        [80, 4, 0x10400],
        [263, 1, 1],
        [280, 8, 10n ** 12n],
        [525, 1, 7],
        [768, 256, 'nqn.2019-08.org.qemu:one'],
        [2048, 2, 2500],
        [2048 + 32 + 3, 1, 3],
        [2048 + 32 + 4, 4, 5000],
      ]),
    );
    expect(controller).toMatchObject({
      vid: 0x1b36,
      sn: 'S123',
      mn: 'A model',
      fr: '1.0',
      ieee: 0x525400,
      mdts: 7,
      ver: 0x10400,
      tnvmcap: 10n ** 12n,
      sqes: 0x66,
      cqes: 0x44,
      nn: 256,
      vwc: 7,
      subnqn: 'nqn.2019-08.org.qemu:one',
    });
    expect(controller.powerStates).toHaveLength(2);
    expect(controller.powerStates[0]).toMatchObject({ mp: 2500, flags: 0 });
    expect(controller.powerStates[1]).toMatchObject({ flags: 3, enlat: 5000 });
    expect(checkController(controller)).toEqual([]);
  });

  it.each<[string, Fields, string[]]>([
    ['no entries of 64 bytes', [[512, 1, 0x55]], ['sqes']],
    ['no entries of 16 bytes', [[513, 1, 0x33]], ['cqes']],
    ['a discovery controller', [[111, 1, 2]], ['cntrltype']],
    ['no namespaces', [[516, 4, 0]], ['nn']],
    ['a transfer beyond all', [[77, 1, 255]], ['mdts']],
    ['255 power states', [[263, 1, 255]], ['npss']],
    ['a reserved identifier', [[78, 2, 0xffff]], ['cntlid']],
  ])('is found out: %s', (_what, fields, wanted) => {
    const controller = parseController(page([...SANE, ...fields]));
    expect(checkController(controller).map(({ field }) => field)).toEqual(wanted);
    expect(controller.powerStates.length).toBeLessThanOrEqual(32);
  });

  it('lets no control character through', () => {
    const { sn, mn } = parseController(
      page([...SANE, [4, 20, 'a\x1b[2Jb\x07'], [24, 40, 'x\0garbage']]),
    );
    expect(sn).toBe('a\\x1b[2Jb\\x07');
    expect(mn).toBe('x');
  });

  it('is read whatever stands in it', () => {
    fc.assert(
      fc.property(pages, (bytes) => {
        const controller = parseController(bytes);
        checkController(controller);
        expect(/^[\x20-\x7e]*$/.test(controller.sn + controller.mn + controller.subnqn)).toBe(true);
        stripeBytes(controller, 4096);
      }),
      { numRuns: 50 },
    );
    expect(() => parseController(new Uint8Array(4095))).toThrow(RangeError);
  });
});

describe('Identify Namespace', () => {
  const GOOD: Fields = [
    [0, 8, 1000n],
    [8, 8, 1000n],
    [16, 8, 10n],
    [25, 1, 1],
    [26, 1, 1],
    [33, 1, 1],
    [104, 8, 0x0807060504030201n],
    [128 + 2, 1, 9],
    [128 + 4, 2, 8],
    [128 + 6, 1, 12],
    [128 + 7, 1, 2],
  ];

  it('is read by the offsets of the standard', () => {
    const namespace = namespaces.parseNamespace(page([...GOOD, [29, 1, 1]]));
    expect(namespace).toMatchObject({ nsze: 1000n, ncap: 1000n, nuse: 10n, formatCount: 2 });
    expect(namespace.nguid).toBe('01020304050607080000000000000000');
    expect(namespace.lbaFormats[1]).toEqual({ ms: 8, ds: 12, rp: 2 });
    expect(namespaces.formatInUse(namespace)).toEqual({
      blockBytes: 4096,
      metadataBytes: 8,
      metadataInline: false,
      protection: 1,
    });
    expect(namespaces.deallocatedReads(namespace)).toBe('zeros');
    expect(namespaces.checkNamespace(namespace)).toEqual([]);
  });

  it('has its format in six bits where there are more than 16', () => {
    const many = namespaces.parseNamespace(
      page([...GOOD, [25, 1, 30], [82, 1, 20], [26, 1, 0x31], [128 + 17 * 4 + 2, 1, 9]]),
    );
    expect([many.formatCount, many.formatIndex]).toEqual([51, 17]);
    expect(namespaces.formatInUse(many)).toMatchObject({ blockBytes: 512, metadataInline: false });
    const few = namespaces.parseNamespace(page([...GOOD, [26, 1, 0x61]]));
    expect(few.formatIndex).toBe(1);
  });

  it.each<[string, Fields, string[]]>([
    ['no blocks', [[0, 8, 0n]], ['nsze']],
    ['more blocks than numbers', [[0, 8, 2n ** 60n]], ['nsze', 'nsze']],
    ['more capacity than size', [[8, 8, 1001n]], ['ncap']],
    ['more in use than capacity', [[16, 8, 1001n]], ['nuse']],
    ['256 formats', [[25, 1, 255]], ['nlbaf']],
    ['a format that is not there', [[26, 1, 2]], ['flbas']],
    ['blocks of no size', [[128 + 6, 1, 0]], ['lbads']],
    ['blocks of 256 bytes', [[128 + 6, 1, 8]], ['lbads']],
    ['blocks of a tebibyte', [[128 + 6, 1, 40]], ['lbads']],
    ['protection of type 5', [[29, 1, 5]], ['dps']],
    [
      'protection without metadata',
      [
        [29, 1, 1],
        [26, 1, 0],
      ],
      ['dps'],
    ],
  ])('is found out: %s', (_what, fields, wanted) => {
    const all = namespaces.checkNamespace(namespaces.parseNamespace(page([...GOOD, ...fields])));
    expect(all.map(({ field }) => field).filter((field) => wanted.includes(field))).toEqual(wanted);
    for (const { problem } of all) expect(problem).not.toMatch(/undefined|NaN/);
  });

  it('is read and judged whatever stands in it', () => {
    fc.assert(
      fc.property(pages, (bytes) => {
        const namespace = namespaces.parseNamespace(bytes);
        const fatal = namespaces.checkNamespace(namespace).some((problem) => problem.fatal);
        const format = namespaces.formatInUse(namespace);
        // What is judged sound can be used.
        if (!fatal)
          expect([512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]).toContain(format?.blockBytes);
        namespaces.parseIndependentNamespace(bytes);
        namespaces.parseNvmController(bytes);
        namespaces.parseNvmNamespace(bytes);
        namespaces.zoneBlocks(namespaces.parseZnsNamespace(bytes), namespace.formatIndex);
      }),
      { numRuns: 50 },
    );
  });

  it('gives the limits of the NVM command set', () => {
    const limits = namespaces.parseNvmController(
      page([
        [1, 1, 5],
        [3, 1, 9],
        [8, 8, 77n],
      ]),
    );
    expect(limits).toMatchObject({ wzsl: 5, dmrl: 9, dmsl: 77n });
  });

  it('gives the zones of a zoned namespace', () => {
    const zoned = namespaces.parseZnsNamespace(
      page([
        [4, 4, 13],
        [8, 4, 0xffffffff],
        [2816 + 16, 8, 0x1000n],
      ]),
    );
    expect(zoned).toMatchObject({ mar: 13, mor: 0xffffffff });
    expect(namespaces.zoneBlocks(zoned, 1)).toBe(0x1000n);
    expect(namespaces.zoneBlocks(zoned, 99)).toBe(0n);
  });
});

describe('a list of namespaces', () => {
  it('rises, and ends at the first entry that does not', () => {
    const list = page([
      [0, 4, 1],
      [4, 4, 5],
      [8, 4, 9],
    ]);
    expect(lists.parseNamespaceList(list)).toEqual([1, 5, 9]);
    expect(
      lists.parseNamespaceList(
        page([
          [0, 4, 5],
          [4, 4, 5],
        ]),
      ),
    ).toEqual([5]);
    expect(lists.parseNamespaceList(page([[0, 4, 0xffffffff]]))).toEqual([]);
  });

  it('lets a caller that asks for the next page get on', () => {
    fc.assert(
      fc.property(pages, fc.nat(), (bytes, after) => {
        const nsids = lists.parseNamespaceList(bytes, after);
        expect(nsids.every((nsid, index) => nsid > (nsids[index - 1] ?? after))).toBe(true);
      }),
      { numRuns: 50 },
    );
  });

  it('of controllers has no more than fit', () => {
    expect(
      lists.parseControllerList(
        page([
          [0, 2, 2],
          [2, 2, 0],
          [4, 2, 7],
        ]),
      ),
    ).toEqual([0, 7]);
    const all = page([[0, 2, 0xffff], ...risingIds()]);
    expect(lists.parseControllerList(all)).toHaveLength(2047);
  });

  function risingIds(): Fields {
    return Array.from({ length: 2047 }, (_, index) => [2 + index * 2, 2, index] as const);
  }
});

describe('identifiers of a namespace', () => {
  it('are read by type', () => {
    const found = lists.parseNamespaceIdentifiers(
      page([
        [0, 2, 0x0801],
        [4, 8, 0x1122334455667788n],
        [12, 2, 0x1003],
        [16, 8, 1n],
        [32, 2, 0x0104],
        [36, 1, 2],
      ]),
    );
    expect(found).toEqual({
      eui64: '8877665544332211',
      nguid: '',
      uuid: '01000000000000000000000000000000',
      csi: 2,
      problems: [],
    });
  });

  it.each<[string, Fields, number]>([
    ['a descriptor without length', [[0, 1, 1]], 1],
    ['a wrong length', [[0, 2, 0x0701]], 1],
    [
      'two of a type',
      [
        [0, 2, 0x0104],
        [5, 2, 0x0104],
      ],
      1,
    ],
    [
      'a type of the future',
      [
        [0, 2, 0x0309],
        [7, 2, 0x0104],
      ],
      0,
    ],
    ['nothing', [], 0],
  ])('with %s end', (_what, fields, problems) => {
    expect(lists.parseNamespaceIdentifiers(page(fields)).problems).toHaveLength(problems);
  });

  it('end whatever stands in the page', () => {
    const types = fc.array(fc.tuple(fc.nat(5), fc.nat(255)), { minLength: 2048, maxLength: 2048 });
    fc.assert(
      fc.property(types, (pairs) => {
        lists.parseNamespaceIdentifiers(Uint8Array.from(pairs.flat()));
      }),
      { numRuns: 30 },
    );
    expect(lists.parseCommandSets(randomBytes(4096, 1))).toHaveLength(512);
    expect(() => lists.parseNamespaceIdentifiers(new Uint8Array(100))).toThrow(RangeError);
  });
});

describe('quirks', () => {
  it('are found by vendor and device', () => {
    expect([...quirksOf({ vendor: 0x1b36, device: 0x0010 })]).toEqual(['bogus-identifiers']);
    expect(quirksOf({ vendor: 0x144d, device: 0xa822 })).toContain('delay-before-ready');
    expect(quirksOf({ vendor: 0x1234, device: 0x5678 }).size).toBe(0);
  });

  it('say why, and name no device twice', () => {
    const quirks = QUIRKS.map(({ quirk }) => quirk);
    expect(new Set(quirks).size).toBe(quirks.length);
    for (const { why, devices } of QUIRKS) {
      expect(why).not.toBe('');
      const ids = devices.map(([vendor, device]) => `${vendor}:${device}`);
      expect(new Set(ids).size).toBe(ids.length);
    }
  });

  it("have Intel's stripe in pages", () => {
    const striped = parseController(page([...SANE, [3072 + 3, 1, 5]]));
    expect(stripeBytes(striped, 4096)).toBe(131072);
    expect(stripeBytes(parseController(page(SANE)), 4096)).toBe(0);
  });
});
