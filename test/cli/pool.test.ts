// `penstock pool` and `penstock volume` as users run them, on real files.

import { createHash, randomBytes } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  linkSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { PoolImage, sound } from '../dedup/pool-image.js';
import { MAIN, command, penstock } from './command.js';

const MIB = 2 ** 20;
const folder = mkdtempSync(join(tmpdir(), 'penstock-pool-'));
const at = (name: string): string => join(folder, name);
const uri = `file:${at('pool.img')}`;
/** The same each time: how much of it is found again by one fingerprint in eight depends on it. */
const content = createHash('shake256', { outputLength: 8 * MIB })
  .update('content')
  .digest();

interface Answer {
  readonly code: number | null;
  readonly body: Record<string, unknown>;
}

/** With --json; what stands in `error` is put into the body. */
async function json(...args: string[]): Promise<Answer> {
  const { stdout, exitCode } = await penstock([...args, '--json']);
  const body = JSON.parse(stdout) as Record<string, unknown>;
  return { code: exitCode, body: { ...body, ...(body['error'] as object | undefined) } };
}

/** Keys of JSON, at any depth, that are not as all others are. */
function camelCase(body: unknown): string[] {
  return JSON.stringify(body).match(/"\w*[A-Z]\w*":/g) ?? [];
}

beforeAll(async () => {
  writeFileSync(at('image'), content);
  const { code, body } = await json('pool', 'create', `${uri}?create=64MiB`);
  expect({ code, body }).toMatchObject({
    code: 0,
    body: { schema: 'penstock.pool-create/1', size_bytes: 64 * MIB, thn: 8, sampling: 8 },
  });
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe('a pool', () => {
  it('takes the same image twice in the room of one, and gives both back', async () => {
    const first = await json('volume', 'import', uri, 'one', at('image'), '--verify');
    expect(first).toMatchObject({
      code: 0,
      body: { created: true, bytes: 8 * MIB, stored_bytes: 8 * MIB, verified: true },
    });
    const second = await json('volume', 'import', uri, 'two', at('image'));
    expect(second.code).toBe(0);
    expect(second.body['stored_bytes']).toBeLessThan(MIB / 4);
    const { body: stats } = await json('pool', 'stats', uri);
    expect(stats).toMatchObject({ schema: 'penstock.pool-stats/1', logical_blocks_used: 4096 });
    expect(stats['saving_percent']).toBeGreaterThan(45);
    // A volume of 2048 blocks lies in nine extents of 253 at least.
    expect(stats['read_extents']).toBeGreaterThanOrEqual(18);
    expect(stats['read_extents']).toBeLessThan(40);
    for (const name of ['one', 'two']) {
      const { code, body } = await json('volume', 'export', uri, name, at(name));
      expect({ code, body }).toMatchObject({ code: 0, body: { written_bytes: 8 * MIB } });
      expect(readFileSync(at(name)).equals(content)).toBe(true);
    }
    const { body: info } = await json('pool', 'info', uri);
    expect(info).toMatchObject({ clean: true, recovery: null, volumes: 2, durable: true });
  });

  it('grows with its file', async () => {
    expect((await penstock(['pool', 'grow', uri])).stdout).toBe(
      'the pool has 64 MiB, as its device\n',
    );
    truncateSync(at('pool.img'), 80 * MIB);
    const { code, body } = await json('pool', 'grow', uri);
    expect({ code, body }).toMatchObject({
      code: 0,
      body: { schema: 'penstock.pool-grow/1', size_bytes: 80 * MIB, gained_bytes: 16 * MIB },
    });
  });

  it('keeps zeros as holes, in the pool and in the file', async () => {
    truncateSync(at('image'), 0);
    writeFileSync(at('sparse'), Buffer.concat([Buffer.alloc(5 * MIB), content.subarray(0, 5000)]));
    const { body } = await json('volume', 'import', uri, 'sparse', at('sparse'), '--verify');
    expect(body).toMatchObject({ bytes: 5 * MIB + 5000, zero_bytes: 5 * MIB, stored_bytes: 8192 });
    await penstock(['volume', 'export', uri, 'sparse', at('sparse.out')]);
    const out = readFileSync(at('sparse.out'));
    expect(out.length).toBe(5 * MIB + 8192);
    expect(out.subarray(5 * MIB, 5 * MIB + 5000).equals(content.subarray(0, 5000))).toBe(true);
    expect(statSync(at('sparse.out')).blocks * 512).toBeLessThan(MIB);
  });

  it('lists its volumes; one that was made reads as zeros', async () => {
    expect((await penstock(['volume', 'create', uri, 'empty', '1MiB'])).exitCode).toBe(0);
    const { body } = await json('volume', 'list', uri);
    expect(body['volumes']).toContainEqual(
      expect.objectContaining({ name: 'empty', size_bytes: MIB, mapped_bytes: 0 }),
    );
    expect((await penstock(['volume', 'list', uri])).stdout).toMatch(/^VOLUME +KIND +OF +SIZE/);
    await penstock(['volume', 'export', uri, 'empty', at('empty')]);
    expect(readFileSync(at('empty')).equals(Buffer.alloc(MIB))).toBe(true);
  });

  it('promises them room, or says that it cannot', async () => {
    const args = ['volume', 'create', uri];
    const refused = await json(...args, 'much', '1GiB', '--reserve', '1GiB');
    expect(refused).toMatchObject({ code: 1, body: { code: 'NO_SPACE' } });
    await penstock([...args, 'safe', '1GiB', '--reserve', '4MiB']);
    const { body } = await json('volume', 'list', uri);
    expect(body['volumes']).toContainEqual(
      expect.objectContaining({ name: 'safe', reserved_bytes: 4 * MIB }),
    );
    const { body: stats } = await json('pool', 'stats', uri);
    expect(stats).toMatchObject({ reserved_blocks: 1024 + 4 + 253, space: 'ok' });
    expect((await penstock(['volume', 'delete', uri, 'safe'])).exitCode).toBe(0);
  });

  it('gives them another size', async () => {
    await penstock(['volume', 'create', uri, 'sized', '4MiB']);
    const grown = await json('volume', 'resize', uri, 'sized', '3GiB');
    expect(grown).toMatchObject({ code: 0, body: { name: 'sized', size_bytes: 3072 * MIB } });
    const less = ['volume', 'resize', uri, 'sized', '1MiB'];
    expect(await json(...less)).toMatchObject({ code: 2, body: { code: 'WOULD_SHRINK' } });
    expect((await penstock([...less, '--shrink'])).stdout).toBe('volume sized has 1 MiB\n');
  });

  it('copies and deletes them, and the check finds nothing', async () => {
    for (const args of [
      ['volume', 'snapshot', uri, 'empty', 'frozen'],
      ['volume', 'clone', uri, 'frozen', 'another'],
      ['volume', 'delete', uri, 'empty'],
    ]) {
      expect((await penstock(args)).exitCode).toBe(0);
    }
    const { body } = await json('volume', 'list', uri);
    expect(body['volumes']).toContainEqual(
      expect.objectContaining({ name: 'frozen', kind: 'snapshot', of: null }),
    );
    expect(body['volumes']).toContainEqual(
      expect.objectContaining({ name: 'another', kind: 'volume', of: 'frozen' }),
    );
    expect(body['volumes']).not.toContainEqual(expect.objectContaining({ name: 'empty' }));
    // One that has the number of what was copied is not what was copied.
    await penstock(['volume', 'create', uri, 'later', '1MiB']);
    const { stdout } = await penstock(['volume', 'list', uri]);
    expect(stdout).toMatch(/^frozen +snapshot +- +1 MiB/m);
    expect(stdout).toMatch(/^another +volume +frozen +1 MiB/m);
    // A snapshot stays what it is, whatever the size of the image.
    for (const image of [at('one'), at('empty')]) {
      const kept = await json('volume', 'import', uri, 'frozen', image);
      expect(kept).toMatchObject({ code: 3, body: { code: 'READ_ONLY' } });
      expect(kept.body['message']).toBe("'frozen' is a snapshot");
      expect(kept.body['hint']).toContain('clone');
    }
    const checked = await json('pool', 'check', uri, '--data');
    expect(checked.body).toMatchObject({ clean: true, findings: [], findings_total: 0 });
    expect(checked.body).toMatchObject({ schema: 'penstock.pool-check/1', journal_entries: 0 });
    const shown = await penstock(['pool', 'check', uri]);
    expect(shown).toMatchObject({ exitCode: 0 });
    expect(shown.stdout).toMatch(/^clean: \d+ pages of metadata/);
  });

  it('lets its volumes be measured, by one worker', async () => {
    expect((await json('volume', 'create', uri, 'measured', '2MiB')).code).toBe(0);
    const words = ['--rw', 'randwrite', '--bs', '4k', '--iodepth', '8', '--size', '2MiB'];
    const { code, body } = await json('bench', `dedup:${uri}#measured`, ...words);
    expect(code).toBe(0);
    expect(JSON.stringify(body)).toContain('"driver":"dedup"');
    const { body: stats } = await json('pool', 'stats', uri);
    expect(stats['volumes']).toBeGreaterThan(0);
    const two = await json('bench', `dedup:${uri}#measured`, ...words, '--numjobs', '2');
    expect(two).toMatchObject({ body: { code: 'NOT_SHAREABLE' } });
    const both = [`dedup:${uri}#measured`, `dedup:${uri}?dedup.block=512#one`];
    const apart = await json('bench', ...both, ...words);
    expect(apart).toMatchObject({ code: 2, body: { code: 'NOT_SHAREABLE' } });
    expect(apart.body['message']).toContain('volumes of one pool');
    expect((await json('volume', 'delete', uri, 'measured')).code).toBe(0);
  });

  it('gives free space back to its file', async () => {
    const before = statSync(at('pool.img')).blocks;
    const { code, body } = await json('pool', 'trim', uri);
    expect({ code, body }).toMatchObject({ code: 0, body: { schema: 'penstock.pool-trim/1' } });
    expect(body['trimmed_bytes']).toBeGreaterThan(16 * MIB);
    expect(statSync(at('pool.img')).blocks).toBeLessThan(before);
    expect((await json('pool', 'check', uri, '--data')).body).toMatchObject({ clean: true });
  });

  it('empties extents, where anything is to be gained', async () => {
    const { code, body } = await json('pool', 'clean', uri);
    expect({ code, body }).toMatchObject({ code: 0, body: { schema: 'penstock.pool-clean/1' } });
    expect(body).toMatchObject({ stopped: null });
    expect(body['freed_extents']).toBe(body['victims']);
    expect((await json('pool', 'check', uri, '--data')).body).toMatchObject({ clean: true });
  });
});

describe('a pool with fast memory', () => {
  it('has it once that is said, and data that is checked', async () => {
    const fast = `file:${at('fast.img')}`;
    const other = `file:${at('other.img')}`;
    const words = ['--llrrm', `${fast}?create=1MiB`, '--llrrm-threshold', '2', '--data-checksum'];
    const { code, body } = await json('pool', 'create', `${other}?create=64MiB`, ...words);
    expect({ code, body }).toMatchObject({
      code: 0,
      body: {
        llrrm: { state: 'on', uri: fast, why: '' },
        ...{ llrrm_threshold: 2, llrrm_policy: 'shared', data_checksum: true },
      },
    });
    writeFileSync(at('shared'), content);
    for (const name of ['a', 'b']) {
      expect((await json('volume', 'import', other, name, at('shared'))).code).toBe(0);
    }
    // Copies that were still to be made at a close are not.
    const { llrrm } = (await json('pool', 'stats', other)).body as { llrrm: { used: number } };
    expect(llrrm.used).toBeGreaterThan(0);
    expect(llrrm.used).toBeLessThanOrEqual(254);
    // The one that it has, once more; and what it is itself, which would be lost.
    const again = await json('pool', 'set', other, '--llrrm', fast);
    expect(again).toMatchObject({ code: 0, body: { llrrm: { state: 'on', uri: fast } } });
    linkSync(at('other.img'), at('alias.img'));
    const itself = await json('pool', 'set', other, '--llrrm', `file:${at('alias.img')}`);
    rmSync(at('alias.img'));
    expect(itself).toMatchObject({ code: 3, body: { code: 'POOL_BUSY' } });
    rmSync(at('fast.img'));
    const { body: missing } = await json('pool', 'info', other);
    expect(missing).toMatchObject({ llrrm: { state: 'degraded', uri: fast } });
    const set = ['--llrrm', 'none', '--thn', '4', '--llrrm-policy', 'random'];
    expect((await json('pool', 'set', other, ...set)).body).toMatchObject({
      ...{ llrrm: { state: 'none' }, thn: 4, llrrm_policy: 'random', llrrm_threshold: 2 },
    });
    const index = await json('pool', 'set', other, '--index-memory', '4MiB');
    expect(index).toMatchObject({ code: 0, body: { index_memory_bytes: 4 * MIB } });
    const extents = [`${other}?create=64MiB`, '--force', '--extent'];
    const refused = await json('pool', 'create', ...extents, '2MiB');
    expect(refused).toMatchObject({ code: 2, body: { code: 'BAD_OPTION' } });
    const made = await json('pool', 'create', ...extents, '1MiB', '--index-memory', '2MiB');
    expect(made).toMatchObject({ code: 0, body: { index_memory_bytes: 2 * MIB } });
    const wrong = await json('pool', 'set', other, '--llrrm-policy', 'some');
    expect(wrong).toMatchObject({ code: 2, body: { code: 'BAD_OPTION' } });
    const { body: told } = await json('pool', 'set', other, '--thn', 'x');
    expect(told).toMatchObject({ code: 'BAD_OPTION', hint: 'See penstock pool set --help.' });
    rmSync(at('other.img'));
  });
});

describe('a damaged pool', () => {
  const damaged = `file:${at('damaged.img')}`;
  /** Changes a byte of a page. */
  const flip = (page: number): void => {
    const bytes = readFileSync(at('damaged.img'));
    bytes[page * 4096 + 1000]! ^= 1;
    writeFileSync(at('damaged.img'), bytes);
  };

  it('is repaired once that is said, and says what it will do before', async () => {
    copyFileSync(at('pool.img'), at('damaged.img'));
    for (const page of [16, 17]) flip(page);
    const before = readFileSync(at('damaged.img'));
    const checked = await json('pool', 'check', damaged);
    expect(checked).toMatchObject({ code: 1, body: { clean: false, code: 'POOL_CORRUPT' } });
    expect(checked.body['message']).toMatch(/^\d+ findings: \d+ pages of metadata/);
    expect(checked.body['hint']).toContain('--repair');
    const told = await json('pool', 'check', damaged, '--repair');
    expect(told).toMatchObject({ code: 1, body: { done: false, code: 'POOL_CORRUPT' } });
    expect(told.body['message']).toMatch(/^nothing was changed; --yes writes these: pages: \d+$/);
    const planned = await penstock(['pool', 'check', damaged, '--repair']);
    expect(planned.exitCode).toBe(1);
    expect(planned.stdout).toMatch(/^repair {2}root page 0: .*made anew$/m);
    expect(planned.stdout).toMatch(/^nothing was changed; --yes writes these: pages: \d+$/m);
    expect(readFileSync(at('damaged.img')).equals(before)).toBe(true);
    const done = await penstock(['pool', 'check', damaged, '--repair', '--yes', '--data']);
    expect(done.exitCode).toBe(0);
    expect(done.stdout).toMatch(/^repair {2}(.|\n)*\nclean: /);
    const again = await json('pool', 'check', damaged, '--repair');
    expect(again).toMatchObject({ code: 0, body: { schema: 'penstock.pool-repair/1', plan: [] } });
    const exported = at('one.repaired');
    expect((await penstock(['volume', 'export', damaged, 'one', exported])).exitCode).toBe(0);
    expect(readFileSync(exported).equals(content)).toBe(true);
  });

  it('loses nothing that it is not told to', async () => {
    copyFileSync(at('pool.img'), at('damaged.img'));
    const bytes = readFileSync(at('damaged.img'));
    const word = (page: number, at: number): number => bytes.readUInt32LE(page * 4096 + at * 4);
    const superblock = word(1, 6) > word(0, 6) ? 1 : 0;
    // The root of volume 0, in the first page of the catalogue.
    flip(word(word(superblock, 32), 8 + 2));
    const { code, body } = await json('pool', 'check', damaged, '--repair', '--yes');
    expect({ code, body }).toMatchObject({
      code: 1,
      body: {
        ...{ done: false, plan_total: 0, left_total: 2, loses: true, check: null },
        ...{ code: 'POOL_CORRUPT', hint: '`--drop-lost` gives up what is lost' },
      },
    });
    expect(camelCase(body)).toEqual([]);
    expect(String(body['left'])).toMatch(/volume one: blocks 0 to \d+ are lost.*stay so/);
    const dropped = await json('pool', 'check', damaged, '--repair', '--yes', '--drop-lost');
    expect(dropped).toMatchObject({
      code: 0,
      body: { done: true, left_total: 0, check: { clean: true, findings_total: 0 } },
    });
    expect(camelCase(dropped.body)).toEqual([]);
    expect((await penstock(['volume', 'export', damaged, 'two', at('two.left')])).exitCode).toBe(0);
    expect(readFileSync(at('two.left')).equals(content)).toBe(true);
  });

  it('is not well as long as its journal cannot be applied', async () => {
    let image: PoolImage | null = null;
    await sound(async (device) => void (image = await PoolImage.of(device)));
    const left = image as unknown as PoolImage;
    const put = (): void => {
      writeFileSync(at('damaged.img'), left.u8);
      truncateSync(at('damaged.img'), 256 * MIB);
    };
    put();
    expect(await json('pool', 'check', damaged)).toMatchObject({ code: 0 });
    expect(await json('pool', 'check', damaged, '--repair')).toMatchObject({ code: 0 });
    // The first record of its first entry names a block of the superblock.
    left.changeEntry((words) => (words[16 + 4] = 1));
    put();
    const checked = await penstock(['pool', 'check', damaged]);
    expect(checked.exitCode).toBe(1);
    expect(checked.stdout).toMatch(/^journal: journal \(page \d+\): .*cannot be applied/);
    for (const words of [[], ['--yes']]) {
      const { stdout, exitCode } = await penstock(['pool', 'check', damaged, '--repair', ...words]);
      expect(exitCode).toBe(1);
      expect(stdout).toMatch(/^leave {3}journal: .*cannot be applied(.*\n)*nothing is repaired/);
      expect(stdout).toContain('--drop-lost');
    }
    left.flip(left.root);
    put();
    const { stdout, exitCode } = await penstock(['pool', 'check', damaged, '--repair', '--yes']);
    expect(exitCode).toBe(1);
    expect(stdout.match(/^leave {3}journal/gm)).toHaveLength(1);
    expect(stdout).toMatch(/^pages that are written: \d+\nleave {3}the pool does not open yet: /m);
    expect(stdout).toMatch(/^journal: .*\n(.*\n)*1 findings: /m);
    const dropped = ['--repair', '--yes', '--drop-lost'];
    expect(await json('pool', 'check', damaged, ...dropped)).toMatchObject({ code: 0 });
  });

  it('is not repaired by half a command', async () => {
    for (const word of ['--yes', '--drop-lost']) {
      expect(await json('pool', 'check', damaged, word)).toMatchObject({ code: 2 });
    }
  });
});

describe('what cannot be', () => {
  it.each([
    [['pool', 'info', `file:${at('plain')}`], 3, 'NOT_A_POOL'],
    [['pool', 'info', `file:${at('short')}`], 3, 'POOL_TRUNCATED'],
    [['pool', 'create', uri], 1, 'POOL_EXISTS'],
    [['pool', 'create', uri, '--force', '--sampling', '3'], 2, 'BAD_OPTION'],
    [['pool', 'create', uri, '--force', '--thn', '257'], 2, 'BAD_OPTION'],
    [['volume', 'create', uri, 'x', 'much'], 2, 'BAD_SIZE'],
    [['volume', 'create', uri, 'x', '5000'], 2, 'BAD_SIZE'],
    [['volume', 'export', uri, 'nowhere', at('nowhere')], 3, 'NO_SUCH_VOLUME'],
    [['volume', 'export', uri, 'held', at('plain')], 1, 'FILE_EXISTS'],
    [['volume', 'export', uri, 'held', at('pool.img'), '--force'], 2, 'BAD_OPTION'],
    [['volume', 'export', uri, 'held', folder, '--force'], 2, 'NOT_A_FILE'],
    [['volume', 'import', uri, 'x', at('missing')], 3, 'NO_SUCH_FILE'],
    [['volume', 'import', uri, 'held', at('plain')], 2, 'BAD_SIZE'],
  ] as const)('%j: exit %i, %s', async (args, exitCode, code) => {
    writeFileSync(at('plain'), Buffer.alloc(2 * MIB, 'no pool'));
    copyFileSync(at('pool.img'), at('short'));
    truncateSync(at('short'), 60 * MIB);
    await penstock(['volume', 'create', uri, 'held', '1MiB']);
    expect(await json(...args)).toMatchObject({ code: exitCode, body: { code } });
    expect(existsSync(at('nowhere'))).toBe(false);
    expect(readFileSync(at('plain')).length).toBe(2 * MIB);
  });

  it('leaves nothing of an export that found no room', async () => {
    await penstock(['volume', 'create', uri, 'wide', '8GiB']);
    const words = ['volume', 'export', uri, 'wide', at('wide'), '--json'];
    const script = 'ulimit -f 4194304; exec "$@"';
    const args = ['-c', script, 'bash', process.execPath, MAIN, ...words];
    const { stdout, exitCode } = await command('bash', args);
    const { error } = JSON.parse(stdout) as { error: { code: string } };
    expect({ exitCode, code: error.code }).toEqual({ exitCode: 1, code: 'NO_SPACE' });
    expect(readdirSync(folder).filter((name) => name.startsWith('wide'))).toEqual([]);
  });

  it('says that a pool is full, and closes it in order', async () => {
    const small = `file:${at('small.img')}`;
    await penstock(['pool', 'create', `${small}?create=24MiB`]);
    writeFileSync(at('large'), Buffer.concat([content, randomBytes(16 * MIB)]));
    const full = await json('volume', 'import', small, 'one', at('large'));
    expect(full).toMatchObject({ code: 1, body: { code: 'NO_SPACE' } });
    expect((await json('pool', 'info', small)).body).toMatchObject({ clean: true, volumes: 1 });
  });
});

it('pool check ends at SIGINT', async () => {
  const slow = `${uri}?fault.delayUs=1000000`;
  const signals = [{ afterMs: 4000, signal: 'SIGINT' }] as const;
  const ended = await penstock(['pool', 'check', slow, '--data', '--json'], { signals });
  expect(ended.exitCode).toBe(130);
  expect(JSON.parse(ended.stdout)).toMatchObject({ error: { code: 'INTERRUPTED' } });
});
