// The check of a pool: a sound one is clean, and every kind of damage is found and named.

import { beforeAll, describe, expect, test } from 'vitest';
import {
  checkPool,
  Pool,
  type CheckOptions,
  type CheckProgress,
  type CheckReport,
} from '../../lib/dedup/index.js';
import { open } from '../../lib/open.js';
import { DEVICE, PoolImage, sound } from './pool-image.js';

let whole: PoolImage;

beforeAll(async () => {
  whole = await sound();
});

async function check(image: PoolImage, options?: CheckOptions): Promise<CheckReport> {
  const device = await image.device();
  try {
    const report = await checkPool(device, options);
    expect(Buffer.compare((await PoolImage.of(device)).u8, image.u8)).toBe(0);
    return report;
  } finally {
    await device.close();
  }
}

/** The kinds and places that a check of a damaged copy finds. */
async function damaged(
  damage: (image: PoolImage) => void,
  options?: CheckOptions,
): Promise<string[]> {
  const image = whole.copy();
  damage(image);
  const report = await check(image, options);
  expect(report.clean).toBe(false);
  expect(report.findingsTotal).toBeGreaterThanOrEqual(report.findings.length);
  for (const finding of report.findings) expect(finding.message).toMatch(/^\w.*\w/);
  return report.findings.map(({ kind, where }) => `${kind} at ${where.pbn}`);
}

describe('a sound pool', () => {
  test('is clean when it was made, and after a close in order', async () => {
    const device = await open(DEVICE);
    await expect(checkPool(device)).rejects.toMatchObject({ code: 'NOT_A_POOL' });
    await Pool.create(device);
    expect(await checkPool(device)).toMatchObject({ clean: true, pages: 0, volumes: 0 });
    await (await Pool.open(device)).close();
    expect(await checkPool(device)).toMatchObject({ clean: true, findings: [], volumes: 0 });
    await device.close();
  });

  test('is clean with its data, and counted', async () => {
    const seen: CheckProgress[] = [];
    const report = await check(whole, { data: true, onProgress: (step) => void seen.push(step) });
    expect(report.findings).toEqual([]);
    expect(report).toMatchObject({
      schema: 'penstock.pool-check/1',
      clean: true,
      findingsTotal: 0,
      volumes: 3,
      journalEntries: 0,
    });
    // Extents have blocks, or nodes; summaries have how many.
    const used = whole.extents(false).map((extent) => usedOf(whole, extent));
    const nodes = whole.extents(true).map((extent) => usedOf(whole, extent));
    expect(report.blocks).toBe(used.reduce((sum, each) => sum + each));
    expect(report.nodes).toBe(nodes.reduce((sum, each) => sum + each));
    expect(seen.at(-1)).toEqual({
      phase: 'space',
      done: whole.highWater - whole.firstGroup,
      total: whole.highWater - whole.firstGroup,
    });
  });

  test('that was not closed is checked as its checkpoint is, and says what follows', async () => {
    let report: CheckReport | null = null;
    let clean = false;
    await sound(async (device) => {
      report = await checkPool(device, { data: true });
      const left = await (await PoolImage.of(device)).device();
      await (await Pool.open(left)).close();
      clean = (await checkPool(left, { data: true })).clean;
      await left.close();
    });
    expect(report).toMatchObject({ clean: true, findings: [] });
    expect(report!.journalEntries).toBeGreaterThan(0);
    expect(clean).toBe(true);
  });

  test('is checked until a signal ends that', async () => {
    const device = await whole.device();
    const signal = AbortSignal.abort('enough');
    await expect(checkPool(device, { signal })).rejects.toBe('enough');
    const later = new AbortController();
    let steps = 0;
    const onProgress = (): void => {
      if (++steps === 2) later.abort('enough');
    };
    const checking = checkPool(device, { data: true, onProgress, signal: later.signal });
    await expect(checking).rejects.toBe('enough');
    expect(steps).toBeLessThan(5);
    await device.close();
  });

  test('that changes meanwhile is checked again, and POOL_BUSY in the end', async () => {
    const device = await whole.device();
    const pool = await Pool.open(device);
    let made = 0;
    const checking = (most: number): Promise<CheckReport> =>
      checkPool(device, {
        onProgress: async ({ phase, done }) => {
          if (phase !== 'maps' || done !== 1 || made === most) return;
          made++;
          await pool.createVolume(`late-${made}`, 2 ** 20);
        },
      });
    expect(await checking(2)).toMatchObject({ clean: true, volumes: 5 });
    await expect(checking(5)).rejects.toMatchObject({ code: 'POOL_BUSY' });
    expect(made).toBe(5);
    await pool.close();
    await device.close();
  });
});

test('a device that no pool can be on is told apart from damage', async () => {
  for (const [uri, code] of [
    ['ram:4KiB', 'NOT_A_POOL'],
    ['ram:1MiB?bs=8192', 'POOL_BAD_DEVICE'],
  ] as const) {
    const device = await open(uri);
    await expect(checkPool(device)).rejects.toMatchObject({ code });
    await device.close();
  }
});

describe('a flipped bit is found, and the page named', () => {
  const kinds: Record<string, (image: PoolImage) => number> = {
    superblock: (image) => image.superblock,
    root: (image) => image.root,
    summary: (image) => image.summary,
    count: (image) => image.count(image.firstGroup),
    fingerprint: (image) => image.fingerprint(image.extents(false)[0]!),
    node: (image) => image.rootOf(1),
    catalogue: (image) => image.catalogue,
  };

  for (const [kind, placeOf] of Object.entries(kinds)) {
    // In its magic, its checksum, its place, and what it says.
    for (const bit of [0, 32 + 5, 64 + 1, 8 * 1000]) {
      test(`${kind}, bit ${bit}`, async () => {
        const pbn = placeOf(whole);
        const found = await damaged((image) => image.flip(pbn, bit));
        expect(found).toContain(`${kind} at ${pbn}`);
      });
    }
  }

  test('in the older superblock', async () => {
    const pbn = 1 - whole.superblock;
    expect(await damaged((image) => image.flip(pbn))).toEqual([`superblock at ${pbn}`]);
  });

  test('in both superblocks: nothing is read any more', async () => {
    const found = await damaged((image) => [0, 1].forEach((pbn) => image.flip(pbn)));
    expect(found).toEqual(['superblock at 0', 'superblock at 1']);
  });

  test('in a block, which is no page: only with data', async () => {
    const extent = whole.extents(false)[0]!;
    const image = whole.copy();
    const block = extent * 256 + 3 + (firstCounted(whole, extent) % 253);
    image.flip(block);
    expect((await check(image)).clean).toBe(true);
    const report = await check(image, { data: true });
    expect(report.findings).toMatchObject([{ kind: 'fingerprint differs', where: { pbn: block } }]);
    expect(report.findings[0]!.message).toMatch(/no damage/);
  });

  test('a page of another place is not taken for the one that belongs there', async () => {
    const [from, to] = [whole.rootOf(0), whole.rootOf(1)];
    const found = await damaged((image) => image.page(to).set(image.page(from)));
    expect(found).toContain(`node at ${to}`);
  });
});

describe('what does not agree, with right checksums, is found', () => {
  test('a count that is too low, and one too high', async () => {
    const group = whole.extents(false)[0]! >>> 2;
    const pbn = whole.count(group);
    const at = 8 + firstCounted(whole, whole.extents(false)[0]!);
    for (const by of [1, -1]) {
      const found = await damaged((image) =>
        image.change(pbn, (words) => (words[at] = words[at]! + by)),
      );
      expect(found).toContain(`references at ${pbn}`);
    }
  });

  test('a free block that is counted', async () => {
    const group = whole.highWater - 1;
    const pbn = whole.count(group);
    const found = await damaged((image) => image.change(pbn, (words) => (words[8 + 1011] = 1)));
    expect(found).toEqual([`used at ${whole.summary}`, `references at ${pbn}`]);
  });

  test('used blocks of an extent', async () => {
    const pbn = whole.summary;
    const at = 8 + 2 * whole.firstGroup;
    const found = await damaged((image) =>
      image.change(pbn, (words) => (words[at] = words[at]! - 1)),
    );
    expect(found).toEqual([`span at ${whole.root}`, `used at ${pbn}`]);
  });

  test('free blocks, and empty extents, of a span', async () => {
    for (const by of [1 << 12, 1 << 1]) {
      const found = await damaged((image) =>
        image.change(whole.root, (words) => (words[8] = words[8]! + by)),
      );
      expect(found).toEqual([`span at ${whole.root}`]);
    }
  });

  test('what a volume says is mapped, and its name, level and serial', async () => {
    const pbn = whole.catalogue;
    const at = whole.record(1);
    const changes: ((words: Uint32Array) => unknown)[] = [
      (words) => words[at + 10]!++,
      (words) => words.copyWithin(at + 16, whole.record(0) + 16, whole.record(0) + 48),
      (words) => words.fill(0, at + 16, at + 48),
      (words) => (words[at + 16] = 0xffffffff),
      (words) => words[at + 9]!--,
      (words) => (words[at + 9] = 1000),
      (words) => (words[at] = 4),
      (words) => (words[at + 4] = 4095),
      (words) => (words[at + 8] = 17),
      (words) => (words[at + 12] = 3 * 2 ** 18 + 1),
      (words) => (words[at + 13] = 1),
      (words) => (words[whole.record(3)] = 1),
    ];
    for (const change of changes) {
      const found = await damaged((image) => image.change(pbn, change));
      expect(new Set(found)).toEqual(new Set([`volume at ${pbn}`]));
    }
  });

  test('a level that is not the one of the tree', async () => {
    const pbn = whole.catalogue;
    const at = whole.record(1) + 1;
    const higher = await damaged((image) => image.change(pbn, (words) => words[at]!++));
    expect(higher).toContain(`node at ${whole.rootOf(1)}`);
    const lower = await damaged((image) => image.change(pbn, (words) => words[at]!--));
    expect(lower).toEqual(
      expect.arrayContaining([`volume at ${pbn}`, `node at ${whole.rootOf(1)}`]),
    );
    expect(
      await damaged((image) => image.change(pbn, (words) => (words[at] = 0xffffffff))),
    ).toContain(`volume at ${pbn}`);
  });

  test('a size beyond what any volume has, and a level too low for it', async () => {
    const pbn = whole.catalogue;
    for (const [volume, word, value] of [
      [1, 5, 2 ** 15],
      [2, 1, 4],
      [2, 4, 2 ** 30],
    ] as const) {
      const image = whole.copy();
      image.change(pbn, (words) => (words[image.record(volume) + word] = value));
      // Also one that is being deleted.
      for (const state of [1, 3]) {
        image.change(pbn, (words) => (words[image.record(volume)] = state));
        const { findings } = await check(image);
        expect(findings.map(({ where }) => where.pbn)).toContain(pbn);
        const device = await image.device();
        await expect(Pool.open(device)).rejects.toMatchObject({ code: 'POOL_CORRUPT' });
        await device.close();
      }
    }
  });

  test('a page that is newer than the checkpoint', async () => {
    const pbn = whole.count(whole.firstGroup);
    const found = await damaged((image) => image.change(pbn, (words) => words[6]!++));
    expect(found).toContain(`count at ${pbn}`);
  });

  test('what a superblock says and cannot be: opening refuses it, too', async () => {
    const pbn = whole.superblock;
    for (const [word, value] of [
      [20, 0xffffffff],
      [22, 0],
      [20, 65_535],
      [23, 3],
      [24, 5],
      [18, 2 ** 20],
      [25, 2 ** 31],
      [26, 2 ** 31],
      [27, 257],
      [28, 0],
      [30, 0],
      [30, 3],
      [30, 2 ** 17],
      [31, 5],
      [34, 2 ** 25],
      [42, 2],
    ] as const) {
      const damage = (image: PoolImage): void =>
        image.change(pbn, (words) => (words[word] = value));
      expect(new Set(await damaged(damage)), `word ${word}`).toEqual(
        new Set([`superblock at ${pbn}`]),
      );
      const image = whole.copy();
      damage(image);
      const device = await image.device();
      await expect(Pool.open(device)).rejects.toMatchObject({ code: 'POOL_CORRUPT' });
      await device.close();
    }
  });

  test('a superblock whose number belongs to the other place', async () => {
    const pbn = whole.superblock;
    const found = await damaged((image) => image.change(pbn, (words) => words[6]!++));
    expect(found).toEqual([`superblock at ${pbn}`]);
  });
});

test('a journal that opening the pool would refuse is found', async () => {
  let left = whole;
  await sound(async (device) => void (left = await PoolImage.of(device)));
  // The first record of the first entry is at word 16.
  const changes: [string, (words: Uint32Array) => unknown][] = [
    ['a block before the groups', (words) => (words[16 + 4] = 3)],
    ['a block beyond the pool', (words) => (words[16 + 4] = 65_536 + 3)],
    ['a block far beyond it', (words) => (words[16 + 5] = 1)],
    ["an extent's own page", (words) => (words[16 + 4] = words[16 + 4]! & ~255)],
    ['blocks of two extents', (words) => (words[16 + 4] = words[16 + 4]! | 255)],
    ['no block', (words) => (words[16] = 1)],
    ['too many blocks', (words) => (words[16] = 1 | (257 << 8))],
    ['no kind of a record', (words) => words[16]!++ && words[16]!++],
    ['no kind of an entry', (words) => (words[5] = 7)],
    ['records beyond its end', (words) => (words[7] = 100_000)],
    ['beyond the end of the volume', (words) => (words[16 + 2] = 2 ** 24)],
  ];
  expect(left.page(left.entry)[16]! & 0xff).toBe(1);
  expect(left.page(left.entry)[16]! >>> 8).toBeGreaterThan(1);
  for (const [name, change] of changes) {
    const image = left.copy();
    image.changeEntry(change);
    const report = await check(image, { data: true });
    expect(report.findings, name).toMatchObject([{ kind: 'journal', where: { pbn: left.entry } }]);
    const device = await image.device();
    await expect(Pool.open(device), name).rejects.toMatchObject({ code: 'POOL_CORRUPT' });
    await device.close();
  }
});

describe('an entry that names what it cannot is found', () => {
  /** The first leaf of the map that has several levels. */
  const leaf = (): number => {
    let pbn = whole.rootOf(1);
    while (whole.page(pbn)[7] !== 0) pbn = whole.page(pbn)[whole.set(pbn, 8, 512)[0]!]!;
    return pbn;
  };
  /** Changes the first entry of a map's leaf that is set. */
  const naming = (pbn: number) => (image: PoolImage) => {
    image.change(leaf(), (words) => {
      const at = image.set(leaf(), 8, 512)[0]!;
      words[at] = pbn >>> 0;
      new Uint8Array(words.buffer, words.byteOffset, 4096)[520 * 4 + at - 8] = pbn / 2 ** 32;
    });
  };

  test('a free block', async () => {
    const extent = whole.extents(false).at(-1)!;
    const free = firstFree(whole, extent);
    expect(free).toBeGreaterThanOrEqual(0);
    const found = await damaged(naming(extent * 256 + 3 + free));
    expect(found).toContain(`references at ${whole.count(extent >>> 2)}`);
  });

  test("an extent's own page, one of the journal, a node, an unused group", async () => {
    const [extent] = whole.extents(false);
    const places = [extent! * 256, extent! * 256 + 2, 500, 0 + 1, leaf(), whole.highWater * 1024];
    for (const pbn of [...places, (whole.highWater + 1) * 1024 + 5]) {
      expect(await damaged(naming(pbn)), String(pbn)).toContain(`entry at ${leaf()}`);
    }
  });

  test('beyond the device, and with its highest bits set', async () => {
    for (const pbn of [65_536 + 3, 2 ** 32 + 3, 2 ** 40 - 1]) {
      expect(await damaged(naming(pbn)), String(pbn)).toContain(`entry at ${leaf()}`);
    }
  });

  test('a block where a node should be, itself, and what is above it', async () => {
    const upper = whole.rootOf(1);
    const at = whole.set(upper, 8, 512)[0]!;
    const block = whole.page(leaf())[whole.set(leaf(), 8, 512)[0]!]!;
    const toBlock = await damaged((image) => image.change(upper, (words) => (words[at] = block)));
    expect(toBlock).toEqual(expect.arrayContaining([`entry at ${upper}`, `node at ${block}`]));
    const toSelf = await damaged((image) => image.change(upper, (words) => (words[at] = upper)));
    expect(toSelf).toContain(`entry at ${upper}`);
    const toTop = await damaged((image) =>
      image.change(image.catalogue, (words) => (words[image.record(1) + 2] = image.catalogue)),
    );
    expect(toTop).toContain(`entry at ${whole.catalogue}`);
  });

  test('a catalogue that is not there, or that is a block', async () => {
    const pbn = whole.superblock;
    const none = await damaged((image) => image.change(pbn, (words) => (words[32] = 0)));
    expect(none).toContain(`volume at ${pbn}`);
    const block = whole.extents(false)[0]! * 256 + 3;
    const wrong = await damaged((image) => image.change(pbn, (words) => (words[32] = block)));
    expect(wrong).toEqual(expect.arrayContaining([`entry at ${pbn}`, `catalogue at ${block}`]));
  });
});

function usedOf(image: PoolImage, extent: number): number {
  return (image.group(extent >>> 2)[0] >>> (8 * (extent % 4))) & 0xff;
}

/** Place among the counts of its group of an extent's first block in use. */
function firstCounted(image: PoolImage, extent: number): number {
  const from = 8 + 253 * (extent % 4);
  return image.set(image.count(extent >>> 2), from, 253)[0]! - 8;
}

/** The first block of an extent that is free, by number in it. */
function firstFree(image: PoolImage, extent: number): number {
  const from = 8 + 253 * (extent % 4);
  return image
    .page(image.count(extent >>> 2))
    .subarray(from, from + 253)
    .indexOf(0);
}
