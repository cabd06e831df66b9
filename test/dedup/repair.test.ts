// Repair: every kind of damage is mended or named, what was not damaged stays byte for byte, and a
// cut at any write leaves the old state or the repaired one.

import { beforeAll, describe, expect, test } from 'vitest';
import {
  checkPool,
  Pool,
  repairPool,
  type RepairOptions,
  type RepairReport,
} from '../../lib/dedup/index.js';
import { faultControl, wrapFault } from '../../lib/drivers/fault/index.js';
import { PenstockError } from '../../lib/errors.js';
import { BlockDevice, type Backend } from '../../lib/hpdi/index.js';
import { isRight, PoolImage, RANGES, sound } from './pool-image.js';

const BLOCK = 4096;
let whole: PoolImage;
/** The same, written to and not closed: entries of its journal follow the checkpoint. */
let left: PoolImage;

beforeAll(async () => {
  whole = await sound();
  const device = await whole.device();
  const pool = await Pool.open(device);
  await use(pool);
  left = await PoolImage.of(device);
  await pool.close();
  await device.close();
});

type Damage = (image: PoolImage) => void;

/** The leaf of the map of `wide` that its first entries lead to. */
function leafOf(image: PoolImage): number {
  let pbn = image.rootOf(1);
  while (image.page(pbn)[7] !== 0) pbn = image.page(pbn)[image.set(pbn, 8, 512)[0]!]!;
  return pbn;
}

function middleOf(image: PoolImage): number {
  const root = image.rootOf(1);
  return image.page(root)[image.set(root, 8, 512)[0]!]!;
}

/** Reads all that was written: names of volumes of which a part is not what it should be. */
async function wrong(pool: Pool): Promise<Map<string, Set<string>>> {
  const found = new Map<string, Set<string>>();
  for (const [name, first, blocks] of RANGES) {
    let how = 'gone';
    if (pool.volumes.some((volume) => volume.name === name)) {
      const disk = pool.openVolume(name);
      const buffer = disk.memory.alloc(blocks * BLOCK);
      how = await disk.read(first, buffer).then(
        () => (isRight(name, first, buffer.u32) ? '' : 'differs'),
        (error: unknown) => (error instanceof PenstockError ? error.code : String(error)),
      );
      buffer.free();
      await disk.close();
    }
    if (how === '') continue;
    found.set(name, (found.get(name) ?? new Set()).add(how));
  }
  return found;
}

/** A volume's map that is higher than its size needs, as pools that grew it in steps may have. */
async function halfGrown(): Promise<PoolImage> {
  const device = await whole.device();
  const pool = await Pool.open(device);
  const { trees, catalogue } = pool.engine.parts;
  const one = catalogue.get('one');
  expect(one.level).toBe(1);
  while (!trees.raise(one)) await pool.engine.turn();
  one.changed = true;
  await pool.checkpoint();
  await pool.close();
  const image = await PoolImage.of(device);
  await device.close();
  return image;
}

interface Seen {
  report: RepairReport;
  wrong: Map<string, Set<string>>;
  /** Kinds that a check with data finds afterwards, after some use. */
  kinds: Set<string>;
}

/** Writes and reads back in volumes that can be. */
async function use(pool: Pool): Promise<void> {
  const disk = pool.openVolume('empty');
  const buffer = disk.memory.alloc(200 * BLOCK);
  const back = disk.memory.alloc(200 * BLOCK);
  for (let i = 0; i < buffer.u32.length; i++) buffer.u32[i] = Math.imul(i + 7, 0x9e3779b1);
  await disk.write(20, buffer);
  await disk.read(20, back);
  expect(Buffer.compare(buffer.u8, back.u8)).toBe(0);
  await disk.close();
  buffer.free();
  back.free();
}

async function repaired(
  from: PoolImage,
  damage: Damage,
  options: RepairOptions = {},
): Promise<Seen> {
  const image = from.copy();
  damage(image);
  const device = await image.device();
  try {
    const planned = await repairPool(device, { ...options, dryRun: true });
    expect(Buffer.compare((await PoolImage.of(device)).u8, image.u8)).toBe(0);
    expect(planned).toMatchObject({ done: false, check: null });
    const told: RepairReport[] = [];
    const report = await repairPool(device, { ...options, onPlan: (plan) => told.push(plan) });
    expect(told[0]!.plan).toEqual(planned.plan);
    expect(report.plan).toEqual(planned.plan);
    for (const line of [...report.plan, ...report.left]) expect(line).toMatch(/^[a-z]/);
    const again = await repairPool(device, { ...options, dryRun: true });
    expect(again.plan).toEqual([]);
    const seen: Seen = { report, wrong: new Map(), kinds: new Set() };
    const pool = await Pool.open(device).catch((error: unknown) => {
      expect(report.left.join()).toContain((error as Error).message);
      return null;
    });
    if (pool !== null) {
      seen.wrong = await wrong(pool);
      if (pool.volumes.some(({ name }) => name === 'empty')) await use(pool);
      await pool.close();
    }
    const checked = await checkPool(device, { data: true });
    for (const { kind } of checked.findings) seen.kinds.add(kind);
    return seen;
  } finally {
    await device.close();
  }
}

const clean = (seen: Seen): void => {
  expect(seen.wrong).toEqual(new Map());
  expect(seen.kinds).toEqual(new Set());
  expect(seen.report).toMatchObject({ done: true, left: [], loses: false });
  expect(seen.report.check).toMatchObject({ clean: true });
  expect(seen.report.plan.length).toBeGreaterThan(0);
};

/** Changes all counts of an extent. */
const counts =
  (nodes: boolean, to: (count: number) => number): Damage =>
  (image) => {
    const extent = image.extents(nodes)[0]!;
    const pbn = image.count(extent >>> 2);
    image.change(pbn, (words) => {
      for (const at of image.set(pbn, 8 + 253 * (extent % 4), 253)) words[at] = to(words[at]!);
    });
  };

/** What is made anew of maps and blocks: nothing is lost. */
const MENDED: Record<string, Damage> = {
  'the newer superblock': (image) => image.flip(image.superblock),
  'the older superblock': (image) => image.flip(1 - image.superblock),
  'a superblock of zeros': (image) => image.page(image.superblock).fill(0),
  'a root page': (image) => image.flip(image.root),
  'a root page of zeros': (image) => image.page(image.root).fill(0),
  'a summary': (image) => image.flip(image.summary),
  'root and summary': (image) => [image.summary, image.root].forEach((pbn) => image.flip(pbn)),
  'a count page': (image) => image.flip(image.count(image.extents(false)[0]! >>> 2)),
  'a count page of nodes': (image) => image.flip(image.count(image.extents(true)[0]! >>> 2)),
  'all pages of counts': (image) => {
    for (let g = image.firstGroup; g < image.highWater; g++) image.flip(image.count(g));
  },
  'a fingerprint page': (image) => image.flip(image.fingerprint(image.extents(false)[0]!)),
  'counts of blocks too low': counts(false, () => 0),
  'counts of nodes too low': counts(true, () => 0),
  'counts too high': counts(false, (count) => count + 2),
  'a count of a free block': (image) => {
    image.change(image.count(image.highWater - 1), (words) => (words[8 + 1011] = 1));
  },
  'used blocks of an extent': (image) => {
    image.change(image.summary, (words) => words[8 + 2 * image.firstGroup]!--);
  },
  'the kind of an extent': (image) => {
    const extent = image.extents(false)[0]!;
    const at = 8 + 2 * (extent >>> 2) + 1;
    image.change(image.summary, (words) => (words[at]! ^= 1 << (8 + (extent % 4))));
  },
  'free blocks of a span': (image) => {
    image.change(image.root, (words) => (words[8] = words[8]! + (5 << 12)));
  },
};

describe('nothing is lost, and all is clean afterwards:', () => {
  test.each(Object.entries(MENDED))('%s', async (_, damage) => {
    clean(await repaired(whole, damage));
  });

  test.each(Object.entries(MENDED).filter(([name]) => !/superblock/.test(name)))(
    '%s, with a journal to be applied',
    async (_, damage) => {
      const seen = await repaired(left, damage);
      clean(seen);
      expect(seen.report.journalEntries).toBeGreaterThan(0);
      expect(seen.report.recovery).toMatchObject({ entries: seen.report.journalEntries });
    },
  );

  test('a sound pool is left as it is', async () => {
    for (const image of [whole, left]) {
      const device = await image.device();
      const report = await repairPool(device);
      expect(report).toMatchObject({ done: false, plan: [], left: [], pages: 0 });
      expect(Buffer.compare((await PoolImage.of(device)).u8, image.u8)).toBe(0);
      await device.close();
    }
  });

  test('records of volumes that do not make sense', async () => {
    const at = whole.record(1);
    const changes: [string, (words: Uint32Array) => unknown][] = [
      ['mapped', (words) => words[at + 10]!++],
      ['serial', (words) => (words[at + 9] = 1000)],
      ['serial', (words) => (words[at + 9] = words[whole.record(0) + 9]!)],
      ['none', (words) => (words[whole.record(3) + 2] = 5000)],
      ['volume that there is not', (words) => (words[at + 8] = 1017)],
      ['size', (words) => (words[at + 4] = 4095)],
      ['reserved', (words) => (words[at + 13] = 1)],
      ['size', (words) => words.fill(0, at + 4, at + 6)],
    ];
    for (const [word, change] of changes) {
      const seen = await repaired(whole, (image) => image.change(image.catalogue, change));
      clean(seen);
      expect(seen.report.plan.join()).toContain(word);
    }
  });

  test('a size that cannot be of what is being deleted', async () => {
    const seen = await repaired(whole, (image) =>
      image.change(image.catalogue, (words) => {
        words[image.record(2)] = 3;
        words[image.record(2) + 5] = 2 ** 20;
      }),
    );
    expect(seen.report).toMatchObject({ left: [], check: { clean: true, volumes: 2 } });
    expect(seen.report.plan.join()).toContain('size');
  });

  test('a map that is too low for its size is raised: the size stays', async () => {
    const image = whole.copy();
    // Of 64 MiB and one level of nodes; and one of 1 MiB that is empty.
    image.change(image.catalogue, (words) => {
      words[image.record(0) + 5] = 2 ** 9;
      words[image.record(2) + 5] = 2;
    });
    const device = await image.device();
    await expect(Pool.open(device)).rejects.toMatchObject({ code: 'POOL_CORRUPT' });
    const report = await repairPool(device);
    expect(report).toMatchObject({ done: true, left: [], check: { clean: true } });
    expect(report.plan.join()).toMatch(/volume one: .* level 3, not 1.*volume empty: .* level 2/);
    expect(report.plan.join()).toContain('pages are used for what is written: 3');
    expect(report.plan.join()).not.toContain('other data');
    const pool = await Pool.open(device);
    const sizes = pool.volumes.map(({ bytes }) => bytes);
    expect(sizes).toEqual([64 * 2 ** 20 + 2 ** 41, 3 * 2 ** 30, 2 ** 20 + 2 ** 33]);
    expect(await wrong(pool)).toEqual(new Map());
    await use(pool);
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  });

  test('a map that is higher than its size needs, is none', async () => {
    const image = await halfGrown();
    const device = await image.device();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    expect(await repairPool(device)).toMatchObject({ done: false, plan: [], left: [] });
    const pool = await Pool.open(device);
    const one = pool.volumes.find(({ name }) => name === 'one')!;
    expect(one).toMatchObject({ bytes: 64 * 2 ** 20, level: 2 });
    expect(await wrong(pool)).toEqual(new Map());
    await pool.resizeVolume('one', 32 * 2 ** 20, { shrink: true });
    expect(one).toMatchObject({ bytes: 32 * 2 ** 20, level: 1 });
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  });

  test('a volume whose name is another one, or none, gets one', async () => {
    const at = whole.record(1);
    for (const change of [
      (words: Uint32Array) => words.copyWithin(at + 16, whole.record(0) + 16, whole.record(0) + 48),
      (words: Uint32Array) => words.fill(0, at + 16, at + 48),
    ]) {
      const seen = await repaired(whole, (image) => image.change(image.catalogue, change));
      expect(seen.report.plan.join()).toContain("it is called 'volume-1'");
      expect(seen.wrong).toEqual(new Map([['wide', new Set(['gone'])]]));
      expect(seen.kinds).toEqual(new Set());
    }
  });
});

describe('a node that cannot be used', () => {
  const nodes: Record<string, Damage> = {
    'a leaf': (image) => image.flip(leafOf(image)),
    'of level 1': (image) => image.flip(middleOf(image)),
    'a root': (image) => image.flip(image.rootOf(1)),
    'an entry beyond the pool': (image) => {
      const pbn = leafOf(image);
      const at = image.set(pbn, 8, 512)[0]!;
      image.change(pbn, (words) => (words[at] = 65_536 + 3));
    },
    'a block where a node should be': (image) => {
      const upper = image.rootOf(1);
      const at = image.set(upper, 8, 512)[0]!;
      const block = image.page(leafOf(image))[image.set(leafOf(image), 8, 512)[0]!]!;
      image.change(upper, (words) => (words[at] = block));
    },
  };

  test.each(Object.entries(nodes))('%s: stays lost, and the rest is right', async (_, damage) => {
    for (const image of [whole, left]) {
      const seen = await repaired(image, (copy) => {
        damage(copy);
        // So that there is something to be done, too.
        copy.change(copy.root, (words) => (words[8] = words[8]! + (5 << 12)));
      });
      expect(seen.report).toMatchObject({ done: true, loses: true });
      expect(seen.report.left.join()).toMatch(/volume wide: blocks \d+ to \d+ are lost.*stay so/);
      expect([...seen.wrong.keys()].filter((name) => name !== 'wide')).toEqual([]);
      for (const hows of seen.wrong.values()) expect(hows).toEqual(new Set(['MEDIA_ERROR']));
      const told = new Set(['node', 'references', 'entry']);
      expect([...seen.kinds].filter((kind) => !told.has(kind))).toEqual([]);
      expect(seen.kinds.size).toBeGreaterThan(0);
    }
  });

  test.each(Object.entries(nodes))('%s: becomes zeros when that is wanted', async (_, damage) => {
    for (const image of [whole, left]) {
      const seen = await repaired(image, damage, { dropLost: true });
      expect(seen.report.plan.join()).toMatch(/volume wide: blocks .* are lost.*become zeros/);
      expect(seen.report.check).toMatchObject({ clean: true });
      expect(seen.kinds).toEqual(new Set());
      expect(seen.report.recovery === null).toBe(image === whole);
      expect([...seen.wrong].filter(([name]) => name !== 'wide')).toEqual([]);
      // The journal may have the same blocks, and then nothing is missing.
      if (image === whole) expect(seen.wrong.get('wide')).toEqual(new Set(['differs']));
    }
  });

  test('which two volumes share: both lose it, and share the new ones', async () => {
    const device = await whole.device();
    const pool = await Pool.open(device);
    await pool.copyVolume('wide', 'copy', 'clone');
    await pool.close();
    const image = await PoolImage.of(device);
    await device.close();
    const seen = await repaired(image, (copy) => copy.flip(leafOf(copy)), { dropLost: true });
    expect(seen.report.plan.filter((line) => line.includes('are lost'))).toHaveLength(2);
    expect(seen.kinds).toEqual(new Set());
    expect([...seen.wrong.keys()]).toEqual(['wide']);
  });
});

describe('a page of the catalogue that cannot be used', () => {
  const damage: Damage = (image) => image.flip(image.catalogue);

  test('stays, and so do the maps that it named', async () => {
    const device = await (() => {
      const image = whole.copy();
      damage(image);
      return image.device();
    })();
    const report = await repairPool(device);
    expect(report).toMatchObject({ done: false, plan: [], loses: true });
    expect(report.left.join()).toContain('catalogue page 0');
    await device.close();
  });

  test('is gone with its volumes when that is wanted', async () => {
    const seen = await repaired(whole, damage, { dropLost: true });
    expect(seen.report.plan.join()).toContain('they are gone');
    expect(seen.kinds).toEqual(new Set());
    expect(seen.wrong.get('one')).toEqual(new Set(['gone']));
  });

  test('of several: the volumes of the others stay', async () => {
    const device = await whole.device();
    const pool = await Pool.open(device);
    for (let i = 0; i < 20; i++) await pool.createVolume(`more-${i}`, 2 ** 20);
    await pool.close();
    const image = await PoolImage.of(device);
    await device.close();
    const root = image.catalogue;
    const [first, second] = [image.page(root)[8]!, image.page(root)[9]!];
    for (const [pbn, volumes] of [
      [second, 15],
      [first, 8],
      [root, 0],
    ] as const) {
      const copy = image.copy();
      copy.flip(pbn);
      const lost = await copy.device();
      const report = await repairPool(lost, { dropLost: true });
      expect(report.check).toMatchObject({ clean: true, volumes });
      const opened = await Pool.open(lost);
      expect(opened.volumes).toHaveLength(volumes);
      if (pbn === second) expect(await wrong(opened)).toEqual(new Map());
      await opened.createVolume('new', 2 ** 20);
      await opened.close();
      expect(await checkPool(lost, { data: true })).toMatchObject({ clean: true });
      await lost.close();
    }
  });
});

describe('what cannot be repaired is told, and left alone', () => {
  test.each([
    ['both superblocks', (image) => [0, 1].forEach((slot) => image.flip(slot)), 'POOL_CORRUPT'],
    ['no pool', (image) => [0, 1].forEach((slot) => image.page(slot).fill(0)), 'NOT_A_POOL'],
    [
      'places that cannot be',
      (image) => image.change(image.superblock, (words) => (words[26] = 2 ** 31)),
      'POOL_CORRUPT',
    ],
  ] as [string, Damage, string][])('%s', async (_, damage, code) => {
    const image = whole.copy();
    damage(image);
    const device = await image.device();
    await expect(repairPool(device, { dropLost: true })).rejects.toMatchObject({ code });
    expect(Buffer.compare((await PoolImage.of(device)).u8, image.u8)).toBe(0);
    await device.close();
  });

  test('a journal that cannot be applied', async () => {
    const image = left.copy();
    image.changeEntry((words) => (words[16 + 4] = 3));
    const device = await image.device();
    const report = await repairPool(device);
    expect(report).toMatchObject({ done: false, planTotal: 0, leftTotal: 2, loses: true });
    expect(report.left.join()).toMatch(/^journal: .* cannot be applied/);
    await device.close();
    const seen = await repaired(left, (copy) => {
      copy.changeEntry((words) => (words[16 + 4] = 3));
      copy.flip(copy.root);
    });
    expect(seen.report).toMatchObject({ done: true, leftTotal: 3, recovery: null });
    expect(seen.report.left[2]).toMatch(/^the pool does not open yet: /);
    expect(seen.kinds).toEqual(new Set(['journal']));
  });

  test('a journal whose end is dropped: what is before it counts', async () => {
    const damage = (copy: PoolImage): void => copy.changeEntry((words) => (words[16 + 4] = 3));
    const seen = await repaired(left, damage, { dropLost: true });
    expect(seen.report).toMatchObject({ done: true, leftTotal: 0, check: { clean: true } });
    expect(seen.report.plan.join()).toMatch(/journal: .* is dropped/);
    expect(seen.kinds).toEqual(new Set());
    const whole = await repaired(left, (copy) => copy.flip(copy.root));
    const { entries } = whole.report.recovery!;
    expect(seen.report.recovery!.entries).toBeLessThan(entries);
  });

  test('a pool whose repair a signal ends: it is heard before anything is changed', async () => {
    const image = whole.copy();
    image.flip(image.root);
    const device = await image.device();
    const signal = AbortSignal.abort('enough');
    await expect(repairPool(device, { signal })).rejects.toBe('enough');
    const planned = new AbortController();
    const onPlan = (): void => planned.abort('enough');
    const repairing = repairPool(device, { onPlan, signal: planned.signal });
    await expect(repairing).rejects.toBe('enough');
    expect(Buffer.compare((await PoolImage.of(device)).u8, image.u8)).toBe(0);
    await device.close();
  });

  test('a pool that is written to while it is read', async () => {
    for (const at of [3, 12]) {
      const device = await whole.device();
      const pool = await Pool.open(device);
      // As another process has it: a device of its own, of the same bytes.
      const other = new BlockDevice(Object.create(device.backend) as Backend);
      const read = other.read.bind(other);
      let reads = 0;
      other.read = async (...args) => {
        if (++reads === at) await pool.createVolume('late', 2 ** 20);
        return read(...args);
      };
      const plans: RepairReport[] = [];
      const repairing = repairPool(other, { dryRun: true, onPlan: (plan) => plans.push(plan) });
      await expect(repairing).rejects.toMatchObject({ code: 'POOL_BUSY', exitCode: 3 });
      expect(reads).toBeGreaterThan(at);
      expect(plans).toEqual([]);
      await pool.close();
      await device.close();
    }
  });

  test('a pool that is open', async () => {
    const device = await whole.device();
    const pool = await Pool.open(device);
    await expect(repairPool(device)).rejects.toMatchObject({ code: 'POOL_BUSY' });
    await pool.close();
    await device.close();
  });
});

describe('a cut at each of its writes leaves the old state or the repaired one', () => {
  const damages: [string, Damage, RepairOptions][] = [
    [
      'root, summary and counts',
      (image) => {
        MENDED['all pages of counts']!(image);
        [image.summary, image.root].forEach((pbn) => image.flip(pbn));
      },
      {},
    ],
    ['a leaf that is dropped', (image) => image.flip(leafOf(image)), { dropLost: true }],
    ['a superblock', (image) => image.flip(image.superblock), {}],
  ];

  test.each(damages)(
    '%s',
    async (_, damage, options) => {
      const image = left.copy();
      damage(image);
      const ram = await image.device();
      // Writes and flushes: those of the opening that follows, too.
      for (let at = 1, isDone = false; !isDone; at++) {
        await image.put(ram);
        const device = failing(ram.backend, at);
        const control = faultControl(device.backend)!;
        isDone = await repairPool(device, options).then(
          () => true,
          (error: unknown) => {
            if (error instanceof PenstockError) return false;
            throw error;
          },
        );
        expect(control.counters.errors > 0).toBe(!isDone);
        await control.cut({ survive: [0, 0.5, 1][at % 3]! });
        await device.close();
        await rest(ram, options);
        if (isDone) expect(at).toBeGreaterThan(4);
      }
      await ram.close();
    },
    120_000,
  );
});

/** A device with a volatile cache, of which no write or flush succeeds from one on. */
function failing(ram: Backend, at: number): BlockDevice {
  const inner = Object.create(ram) as Backend;
  inner.close = async () => {};
  const options = new Map([
    ['seed', String(at)],
    ['cache', '16MiB'],
    ['errorFrom', String(at)],
    ['errorOps', 'write,flush'],
  ]);
  return new BlockDevice(wrapFault(inner, options));
}

/** What was cut can be repaired, or is; nothing is wrong but what was dropped. */
async function rest(device: BlockDevice, options: RepairOptions): Promise<void> {
  await repairPool(device, options);
  const pool = await Pool.open(device);
  const names = [...(await wrong(pool)).keys()];
  expect(names.filter((name) => name !== 'wide' || options.dropLost !== true)).toEqual([]);
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
}
