// The file driver when the world changes under it: sizes, space, rights, kinds of files.

import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  constants,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { Flag, Op, Status } from '../../lib/hpdi/records.js';
import { attach, open } from '../../lib/open.js';
import { skipLoudly } from '../support/environment.js';
import { fillPattern, one, pattern } from '../support/requests.js';
import { childResult, runProgram } from './child.js';

let folder: string;
const devices: BlockDevice[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-file-'));
  chmodSync(folder, 0o755);
});

afterEach(async () => {
  for (const device of devices.splice(0)) await device.close();
  rmSync(folder, { recursive: true });
});

async function openHere(uri: string): Promise<BlockDevice> {
  const device = await open(uri);
  devices.push(device);
  return device;
}

function file(name: string, bytes: number, fill = 0x5a): string {
  const path = join(folder, name);
  writeFileSync(path, Buffer.alloc(bytes, fill));
  return path;
}

describe('opening', () => {
  it.each([
    ['what is not there', (path: string) => path, '', 'NO_SUCH_FILE', 3],
    ['what is below a file', (path: string) => join(file('f', 512), path), '', 'ENOTDIR', 1],
    ['a folder', () => folder, '', 'NOT_A_FILE', 2],
    ['no path', () => '', '', 'BAD_URI', 2],
    ['a path with a NUL', () => '%00', '', 'BAD_URI', 2],
    ['a character device', () => '/dev/null', '', 'NOT_A_FILE', 2],
    ['a terminal', () => '/dev/tty', '?readonly=1', 'NOT_A_FILE', 2],
  ])('%s is a typed error', async (_what, make, keys, code, exitCode) => {
    const error = await open(`file:${make('absent')}${keys}`).catch((one: unknown) => one);
    expect(error).toMatchObject(exitCode === 1 ? { code } : { code, exitCode });
  });

  it('a pipe or socket is an error at once, and never waits for the other end', async () => {
    const pipe = join(folder, 'pipe');
    execFileSync('mkfifo', [pipe]);
    for (const keys of ['', '?readonly=1']) {
      await expect(open(`file:${pipe}${keys}`)).rejects.toMatchObject({ code: 'NOT_A_FILE' });
    }
    const server = createServer().listen(join(folder, 'socket'));
    await new Promise((resolve) => server.once('listening', resolve));
    await expect(open(`file:${join(folder, 'socket')}`)).rejects.toMatchObject({
      code: 'NOT_A_FILE',
    });
    server.close();
  });

  it('without the rights is an error that says so', async () => {
    const path = file('secret', 4096);
    chmodSync(path, 0o400);
    const [readable, nothing] = [file('readable', 4096), join(folder, 'sub')];
    chmodSync(readable, 0o444);
    mkdirSync(nothing, { mode: 0o700 });
    const codes = await childResult<string[]>(
      `
      // The package is read as root; the rights go before the files are opened.
      await lib.open('null:1MiB').then((one) => one.close());
      await lib.open('file:${readable}?readonly=1').then((one) => one.close());
      process.setgid(65534);
      process.setuid(65534);
      const attempt = (uri) => lib.open(uri).then(
        (device) => device.close().then(() => 'open'),
        (error) => error.code + ' ' + (error.hint !== ''),
      );
      console.log(JSON.stringify([
        await attempt('file:${path}'),
        await attempt('file:${readable}'),
        await attempt('file:${readable}?readonly=1'),
        await attempt('file:${folder}/new?create=1MiB'),
        await attempt('file:${nothing}/f'),
      ]));
    `,
    );
    const denied = 'PERMISSION_DENIED true';
    expect(codes).toEqual([denied, denied, 'open', denied, denied]);
    expect(existsSync(join(folder, 'new'))).toBe(false);
  });

  it('says before the first queue what its rings use, in workers too', async () => {
    const uri = `file:${join(folder, 'ring')}?create=1MiB`;
    await using device = await open(uri);
    const { ring } = device.info.description;
    expect(ring).toMatch(/^(plain|[a-z0-9]+(-[a-z]+)*( [a-z0-9]+(-[a-z]+)*)*)$/);
    await using attached = await attach(device.handle());
    expect(attached.info.description['ring']).toBe(ring);
    await using polled = await open(`${uri}&sqpoll=1`);
    expect(polled.info.description['ring']).toContain('sqpoll');
  });

  it('follows links, and leaves nothing open when it fails', async () => {
    const path = file('data', 8192);
    symlinkSync(path, join(folder, 'soft'));
    linkSync(path, join(folder, 'hard'));
    for (const name of ['soft', 'hard']) {
      expect((await openHere(`file:${join(folder, name)}`)).info.blocks).toBe(16);
    }
    const before = readdirSync('/proc/self/fd').length;
    for (let i = 0; i < 20; i++) await open('file:/dev/null').catch(() => undefined);
    expect(readdirSync('/proc/self/fd').length).toBe(before);
  });
});

describe('create', () => {
  it('makes a file with its space, once', async () => {
    const path = join(folder, 'made');
    const first = await openHere(`file:${path}?create=3MiB`);
    expect(first.info.blocks * first.info.blockSize).toBe(3 * 2 ** 20);
    const again = await openHere(`file:${path}?create=9MiB`);
    expect(again.info.blocks).toBe(first.info.blocks);
  });

  it.each(['create=0', 'create=100', 'create=1MiB&readonly=1', 'create=1MiB&iopoll=1'])(
    'with %s is a usage error and leaves no file',
    async (keys) => {
      const path = join(folder, 'never');
      const failed = open(`file:${path}?${keys}`);
      await expect(failed).rejects.toMatchObject({ code: 'BAD_OPTION', exitCode: 2 });
      expect(existsSync(path)).toBe(false);
    },
  );

  it.each([
    ['fault.chache=1M', /'fault\.chache' is not a key of fault:; the nearest is 'fault\.cache'/],
    ['falt.cache=1M', /'falt\.cache' is not a key of file:; the nearest is 'fault\.cache'/],
    ['trac.to=x', /the nearest is 'trace\.to'/],
    ['dedpu.thn=4', /'dedpu\.thn' is not a key of file:; the nearest is 'dedup\.thn'/],
    ['dedup.thn=4', /'dedup\.thn' is a key of dedup:, not of file:/],
    ['sqpol=1', /the nearest is 'sqpoll'/],
  ])('makes nothing of a URI with a misspelt key: %s', async (key, message) => {
    const uri = `file:${join(folder, 'new')}?create=1MiB&${key}`;
    await expect(open(uri)).rejects.toMatchObject({ code: 'UNKNOWN_KEY', exitCode: 2 });
    await expect(open(uri)).rejects.toThrow(message);
    expect(readdirSync(folder)).toEqual([]);
  });

  it.each(['fault.errors=2', 'fault.errorStatus=NONE', 'trace.to='])(
    'makes nothing of a URI whose wrapper cannot be: %s',
    async (key) => {
      const uri = `file:${join(folder, 'new')}?create=1MiB&${key}`;
      await expect(open(uri)).rejects.toMatchObject({ code: 'BAD_URI', exitCode: 2 });
      expect(readdirSync(folder)).toEqual([]);
    },
  );

  it('that fails half-way leaves no file', async () => {
    const path = join(folder, 'huge');
    await expect(open(`file:${path}?create=8000T`)).rejects.toMatchObject({ code: 'NO_SPACE' });
    expect(existsSync(path)).toBe(false);
  });
});

describe('a file whose size changes', () => {
  it('fails reads past its new end, says so, and tells who listens', async () => {
    const path = file('shrinks', 64 * 512);
    const device = await openHere(`file:${path}`);
    const changed = new Promise<number>((resolve) =>
      device.onChange((info) => resolve(info.blocks)),
    );
    const buffer = device.memory.alloc(8 * 512);
    truncateSync(path, 20 * 512);
    await expect(device.read(32, buffer)).rejects.toMatchObject({ code: 'BAD_RANGE' });
    expect(await changed).toBe(20);
    expect(device.info.blocks).toBe(20);
    // A part is there and a part is not: none of it counts.
    await expect(device.read(16, buffer)).rejects.toMatchObject({ code: 'BAD_RANGE' });
    await expect(device.write(16, buffer)).rejects.toMatchObject({ code: 'BAD_RANGE' });
    await device.read(12, buffer);
    expect(buffer.u8.every((byte) => byte === 0x5a)).toBe(true);
    buffer.free();
    expect(readFileSync(path).length).toBe(20 * 512);
  });

  it('tells all who listen, under wrappers too, until they have had enough', async () => {
    const path = file('told', 16 * 512);
    const device = await openHere(`file:${path}?fault.seed=1&trace.to=/dev/null`);
    const told: string[] = [];
    const enough = device.onChange(({ blocks }) => told.push(`first ${blocks}`));
    device.onChange(({ blocks }) => told.push(`second ${blocks}`));
    truncateSync(path, 32 * 512);
    await device.refresh();
    enough();
    truncateSync(path, 8 * 512);
    await device.refresh();
    await device.refresh();
    expect(told).toEqual(['first 32', 'second 32', 'second 8']);
  });

  it('is used in its new part after a refresh', async () => {
    const path = file('grows', 16 * 512);
    const device = await openHere(`file:${path}`);
    const buffer = device.memory.alloc(512);
    await expect(device.write(20, buffer)).rejects.toMatchObject({ code: 'BAD_RANGE' });
    truncateSync(path, 32 * 512);
    expect((await device.refresh()).blocks).toBe(32);
    fillPattern(buffer.u8, 1);
    await device.write(31, buffer);
    expect(readFileSync(path).subarray(31 * 512)).toEqual(Buffer.from(pattern(512, 1)));
    await device.compare(31, buffer); // what is done in software knows the new end, too
    buffer.free();
  });

  it('may have a last part of a block, which is left alone', async () => {
    const path = file('odd', 3 * 512 + 100);
    const device = await openHere(`file:${path}`);
    expect(device.info.blocks).toBe(3);
    const buffer = device.memory.alloc(1536);
    fillPattern(buffer.u8, 2);
    await device.write(0, buffer);
    await device.writeZeroes(1, 2);
    const bytes = readFileSync(path);
    expect(bytes.length).toBe(3 * 512 + 100);
    expect(bytes.subarray(1536).every((byte) => byte === 0x5a)).toBe(true);
    expect(bytes.subarray(512, 1536).every((byte) => byte === 0)).toBe(true);
    buffer.free();
  });
});

describe('operations', () => {
  it.each(['', 'direct=1', 'fixed=0', 'sqpoll=1'])('read back what they did (%s)', async (keys) => {
    const path = join(folder, 'data');
    const device = await openHere(`file:${path}?create=1MiB${keys === '' ? '' : `&${keys}`}`);
    const block = device.info.blockSize;
    const count = (2 ** 20 / block) | 0;
    const buffer = device.memory.alloc(2 ** 20);
    fillPattern(buffer.u8, 3);
    await device.write(0, buffer, { fua: true });
    await device.discard(8, 8);
    await device.writeZeroes(24, 16);
    await device.flush();
    const wanted = pattern(2 ** 20, 3);
    wanted.fill(0, 8 * block, 16 * block).fill(0, 24 * block, 40 * block);
    expect(Buffer.compare(readFileSync(path), wanted)).toBe(0);
    buffer.u8.fill(0xff);
    await device.read(0, buffer);
    expect(Buffer.compare(buffer.u8, wanted)).toBe(0);
    expect(device.info.blocks).toBe(count);
    buffer.free();
  });

  it('take FUA with WRITE_ZEROES as with WRITE', async () => {
    const path = file('zeroes', 64 * 512);
    const device = await openHere(`file:${path}`);
    const queue = device.queue({ depth: 4, split: false });
    const request = { op: Op.WRITE_ZEROES, flags: Flag.FUA, tag: 9, lba: 8, blocks: 8 };
    for (let i = 0; i < 10; i++) {
      expect(await one(queue, request)).toMatchObject({ tag: 9, status: Status.OK });
    }
    const bytes = readFileSync(path);
    expect(bytes.subarray(4096, 8192).every((byte) => byte === 0)).toBe(true);
    expect(bytes.length).toBe(64 * 512);
    await queue.close();
  });

  it('on a device opened for reading change nothing', async () => {
    const path = file('read-only', 64 * 512);
    const device = await openHere(`file:${path}?readonly=1`);
    const buffer = device.memory.alloc(512);
    await device.read(0, buffer);
    const attempts = [
      device.write(0, buffer),
      device.discard(0, 1),
      device.writeZeroes(0, 1),
      device.copy(0, 8, 1),
    ];
    for (const attempt of attempts) {
      await expect(attempt).rejects.toMatchObject({ code: 'READ_ONLY' });
    }
    expect(readFileSync(path).every((byte) => byte === 0x5a)).toBe(true);
    buffer.free();
  });

  it('stop with BAD_ADDRESS at memory that is not there, and touch nothing', async () => {
    const path = file('data', 64 * 512);
    const device = await openHere(`file:${path}`);
    const queue = device.queue({ depth: 4, split: false });
    const { address } = device.memory.alloc(512);
    const beyond = (Math.floor(address / 2 ** 36) + 1) * 2 ** 36 - 512;
    for (const bad of [0, 512, beyond, 2 ** 44 - 512]) {
      for (const op of [Op.READ, Op.WRITE]) {
        const done = await one(queue, { op, tag: 1, lba: 0, blocks: 1, address: bad });
        expect([bad, op, done.code]).toEqual([bad, op, Status.BAD_ADDRESS]);
      }
    }
    device.memory.freeAddress(address);
    expect(readFileSync(path).every((byte) => byte === 0x5a)).toBe(true);
    await queue.close();
  });
});

describe('a full file system', () => {
  it('is NO_SPACE, and nothing that was written before is lost', async (context) => {
    if (process.getuid!() !== 0) skipLoudly(context, 'mounting needs root');
    const mount = join(folder, 'mount');
    mkdirSync(mount);
    const body = `
      const fs = await import('node:fs');
      const device = await lib.open('file:${mount}/data');
      const buffer = device.memory.alloc(65536);
      const results = [];
      const acknowledged = [];
      for (let i = 0; i < 128; i++) {
        buffer.u32.fill(i + 1);
        try { await device.write(i * 128, buffer); acknowledged.push(i); results.push('OK'); }
        catch (error) { results.push(error.code); }
      }
      let lost = 0;
      for (const i of acknowledged) {
        await device.read(i * 128, buffer);
        if (!buffer.u32.every((word) => word === i + 1)) lost++;
      }
      const created = await lib.open('file:${mount}/more?create=1MiB').catch((error) => error.code);
      const left = fs.existsSync('${mount}/more');
      fs.unlinkSync('${mount}/filler');
      buffer.u32.fill(77);
      await device.write(127 * 128, buffer);
      await device.close();
      console.log(JSON.stringify({ kinds: [...new Set(results)].sort(), lost, created, left,
        acknowledged: acknowledged.length }));
    `;
    const script = `
      mount -t tmpfs -o size=6m none '${mount}' &&
      truncate -s 8M '${mount}/data' && head -c 4M /dev/zero > '${mount}/filler' && exec "$@"`;
    const result = await childResult<Record<string, unknown>>(body, {
      before: ['unshare', '--mount', '--propagation', 'private', 'sh', '-ec', script, 'sh'],
    });
    expect(result).toMatchObject({ kinds: ['NO_SPACE', 'OK'], lost: 0, left: false });
    expect(result).toMatchObject({ created: 'NO_SPACE' });
    expect(result['acknowledged']).toBeGreaterThan(0);
  });
});

describe('many opens and closes', () => {
  it('leave no descriptor, mapping or segment behind', async () => {
    const path = file('data', 64 * 512);
    const result = await childResult<Record<string, number[]>>(
      `
      const fs = await import('node:fs');
      const turn = () => new Promise((resolve) => setImmediate(resolve));
      const count = () => [
        fs.readdirSync('/proc/self/fd').length,
        lib.native.segmentIds().length,
        fs.readFileSync('/proc/self/maps', 'utf8').split('io_uring').length,
      ];
      const round = async (times) => {
        for (let i = 0; i < times; i++) {
          const device = await lib.open('file:${path}');
          const buffer = device.memory.alloc(512);
          await device.read(0, buffer);
          buffer.free();
          await device.close();
        }
        for (let i = 0; i < 5; i++) { gc(); await turn(); }
      };
      await round(3);
      const before = count();
      await round(200);
      const device = await lib.open('file:${path}');
      for (let i = 0; i < 300; i++) {
        await device.queue({ depth: 4 }).close();
        await turn();
      }
      for (let i = 0; i < 5; i++) { gc(); await turn(); }
      const queues = count();
      await device.close();
      console.log(JSON.stringify({ before, after: count(), queues }));
    `,
      { nodeOptions: ['--expose-gc'] },
    );
    expect(result['after']).toEqual(result['before']);
    // One descriptor more: the open device; nothing of its 300 closed queues.
    expect(result['queues']![0]).toBe(result['before']![0]! + 1);
    expect(result['queues']![2]).toBe(result['before']![2]);
  });
});

describe('a loop block device', () => {
  it('has its own sizes, the data of its file, and is left to who holds it', async (context) => {
    if (process.getuid!() !== 0) skipLoudly(context, 'loop devices need root');
    const path = file('disk', 8 * 2 ** 20, 0);
    const attached = await runProgram(['losetup', '--find', '--show', '--sector-size=4096', path]);
    if (attached.code !== 0) skipLoudly(context, `no loop device: ${attached.stderr.trim()}`);
    const loop = attached.stdout.trim();
    try {
      for (const keys of ['', '?direct=1']) {
        const device = await open(`file:${loop}${keys}`);
        try {
          expect(device.info).toMatchObject({ blockSize: 4096, blocks: 2048 });
          expect(device.info.description).toMatchObject({ kind: 'block device' });
          const buffer = device.memory.alloc(65536);
          fillPattern(buffer.u8, 9);
          await device.write(100, buffer, { fua: true });
          await device.writeZeroes(104, 4);
          await device.discard(110, 2);
          await device.flush();
          buffer.u8.fill(1);
          await device.read(100, buffer);
          const wanted = pattern(65536, 9)
            .fill(0, 4 * 4096, 8 * 4096)
            .fill(0, 10 * 4096, 12 * 4096);
          expect(Buffer.compare(buffer.u8, wanted)).toBe(0);
          await expect(device.read(2047, buffer)).rejects.toMatchObject({ code: 'BAD_RANGE' });
          buffer.free();
        } finally {
          await device.close();
        }
      }
      const holder = openSync(loop, constants.O_RDONLY | constants.O_EXCL);
      try {
        for (const keys of ['', '?direct=1']) {
          await expect(open(`file:${loop}${keys}`)).rejects.toMatchObject({
            code: 'DEVICE_BUSY',
            exitCode: 3,
            hint: expect.stringContaining('readonly=1') as string,
          });
        }
        const reader = await openHere(`file:${loop}?readonly=1`);
        const block = reader.memory.alloc(4096);
        await reader.read(100, block);
        block.free();
        await reader.close();
      } finally {
        closeSync(holder);
      }
    } finally {
      execFileSync('losetup', ['--detach', loop]);
    }
  });
});
