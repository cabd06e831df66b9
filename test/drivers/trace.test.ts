import {
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
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  readTrace,
  replayTrace,
  TRACE_RECORD,
  wrapTrace,
  type TraceRecord,
} from '../../lib/drivers/trace/index.js';
import { Trace } from '../../lib/drivers/trace/format.js';
import { BlockDevice } from '../../lib/hpdi/index.js';
import { attach, open } from '../../lib/open.js';
import { Queue } from '../../lib/hpdi/queue.js';
import { Flag, Op, Status } from '../../lib/hpdi/records.js';
import { Memory } from '../../lib/memory/index.js';
import { fillPattern, one, pattern, run } from '../support/requests.js';
import { TwinBackend } from '../support/twin.js';

/** What the disk under the trace does: `full` fails writes, `stalled` keeps them waiting. */
const disk = vi.hoisted(() => ({ state: 'well', stalled: [] as (() => void)[] }));

vi.mock('node:fs', async (importOriginal) => {
  const fs = await importOriginal<typeof import('node:fs')>();
  type Write = (...args: unknown[]) => void;
  const write: Write = (...args) => {
    const callback = args.at(-1) as (error: Error | null, bytes: number) => void;
    if (disk.state === 'full') {
      setImmediate(() => callback(Object.assign(new Error('full'), { code: 'ENOSPC' }), 0));
    } else if (disk.state === 'stalled') {
      disk.stalled.push(() => (fs.write as unknown as Write)(...args));
    } else {
      (fs.write as unknown as Write)(...args);
    }
  };
  return { ...fs, write };
});

let folder: string;
let memory: Memory;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-trace-'));
  memory = new Memory();
});

afterEach(() => {
  memory.close();
  rmSync(folder, { recursive: true });
});

async function records(file: string): Promise<TraceRecord[]> {
  const reader = await readTrace(file);
  const all: TraceRecord[] = [];
  for await (const record of reader) all.push(record);
  await reader.close();
  return all;
}

/** Runs `work` on a traced device and closes it. */
async function traced(
  file: string,
  work: (queue: Queue, twin: TwinBackend) => Promise<void>,
): Promise<TwinBackend> {
  const twin = new TwinBackend({ latencyPolls: 2 });
  const backend = wrapTrace(twin, new Map([['to', file]]));
  const queue = new Queue(backend.openQueue({ depth: 16 }), 16);
  try {
    await work(queue, twin);
  } finally {
    await queue.close();
    await backend.close();
  }
  return twin;
}

describe('the trace file', () => {
  it('holds every operation twice, with all that was asked and answered', async () => {
    const file = join(folder, 't');
    const buffer = memory.alloc(1024);
    fillPattern(buffer.u8, 1);
    await traced(file, async (queue) => {
      const { address } = buffer;
      await one(queue, { op: Op.WRITE, flags: Flag.FUA, tag: 77, blocks: 2, lba: 9, address });
      await run(
        queue,
        { op: Op.READ, tag: 5, blocks: 1, lba: 300, address },
        { op: Op.READ, tag: 5, blocks: 2, lba: 9, address },
      );
    });
    const all = await records(file);
    expect(all.map((r) => [r.kind, r.serial])).toEqual([
      ['submit', 0],
      ['complete', 0],
      ['submit', 1],
      ['submit', 2],
      ['complete', 1],
      ['complete', 2],
    ]);
    expect(all[0]).toMatchObject({
      op: Op.WRITE,
      flags: Flag.FUA,
      tag: 77,
      blocks: 2,
      lba: 9,
      address: buffer.address,
      queue: 0,
    });
    // Equal tags are told apart by the serial.
    expect(all[4]).toMatchObject({ tag: 5, lba: 300, status: Status.BAD_RANGE });
    expect(all[5]).toMatchObject({ tag: 5, lba: 9, status: Status.OK });
    for (const record of all.filter((r) => r.kind === 'complete')) {
      const submitted = all.find((r) => r.kind === 'submit' && r.serial === record.serial)!;
      expect(record.latencyNs).toBe(record.timeNs - submitted.timeNs);
      expect(record.timeNs).toBeGreaterThanOrEqual(submitted.timeNs);
    }
  });

  it('describes the device in its header', async () => {
    const file = join(folder, 't');
    const twin = await traced(file, () => Promise.resolve());
    const reader = await readTrace(file);
    expect(reader.header).toMatchObject({ version: 1, uri: 'twin:' });
    expect(reader.header.info).toEqual(twin.info);
    expect(reader.header.tscHertz).toBeGreaterThan(1e8);
    await reader.close();
    expect(statSync(file).size % 64).toBe(0);
  });

  it('is one of its own for everything that attaches', async () => {
    const file = join(folder, 't');
    const home = await open(`ram:1MiB?trace.to=${file}`);
    const handle = structuredClone(home.handle());
    for (let i = 0; i < 2; i++) {
      const attached = await attach(handle);
      await attached.flush();
      await attached.close();
    }
    await home.flush();
    await home.close();
    const names = readdirSync(folder).sort();
    expect(names.length).toBe(3);
    for (const name of names) expect((await records(join(folder, name))).length).toBe(2);
  });

  it('has the words that its table says', () => {
    const words: Record<string, number> = {
      kind: Trace.kind,
      serial: Trace.serial,
      timeLo: Trace.timeLo,
      timeHi: Trace.timeHi,
      op: Trace.op,
      tag: Trace.tag,
      blocks: Trace.blocks,
      status: Trace.status,
      lbaLo: Trace.lbaLo,
      lbaHi: Trace.lbaHi,
      addressLo: Trace.addressLo,
      addressHi: Trace.addressHi,
      latencyLo: Trace.latencyLo,
      latencyHi: Trace.latencyHi,
      resultLo: Trace.resultLo,
      resultHi: Trace.resultHi,
    };
    expect(Object.fromEntries(TRACE_RECORD.map((row) => [row.name, row.word]))).toEqual(words);
    expect(TRACE_RECORD.length * 4).toBe(64);
    const page = readFileSync(new URL('../../docs/trace-format.md', import.meta.url), 'utf8');
    for (const row of TRACE_RECORD) {
      expect(page).toContain(`| ${row.word} | \`${row.name}\` |`);
    }
  });

  it('holds more operations than fit its buffers at once', async () => {
    const file = join(folder, 't');
    await traced(file, async (queue) => {
      const flush = Array.from({ length: 16 }, (_, tag) => ({ op: Op.FLUSH, tag }));
      for (let i = 0; i < 700; i++) await run(queue, ...flush);
    });
    const all = await records(file);
    expect(all.length).toBe(700 * 16 * 2);
    expect(all.filter((r) => r.kind === 'submit').map((r) => r.serial)).toEqual(
      Array.from({ length: 700 * 16 }, (_, i) => i),
    );
  });

  it('ends before a record that was cut short', async () => {
    const file = join(folder, 't');
    await traced(file, async (queue) => void (await one(queue, { op: Op.FLUSH })));
    truncateSync(file, statSync(file).size - 10);
    expect((await records(file)).map((r) => r.kind)).toEqual(['submit']);
  });

  it('refuses what is no trace', async () => {
    const file = join(folder, 'no');
    writeFileSync(file, 'PENSTRCE but not really, although it is long enough to look like one');
    await expect(readTrace(file)).rejects.toMatchObject({ code: 'BAD_TRACE' });
    writeFileSync(file, '');
    await expect(readTrace(file)).rejects.toMatchObject({ code: 'BAD_TRACE' });
    await expect(readTrace(join(folder, 'none'))).rejects.toMatchObject({ code: 'TRACE_FAILED' });
  });

  it('refuses to begin where it cannot write', () => {
    const wrap = (keys: [string, string][]) => wrapTrace(new TwinBackend(), new Map(keys));
    expect(() => wrap([])).toThrow(/trace\.to/);
    expect(() => wrap([['too', '/x']])).toThrow(/trace\.to/);
    expect(() => wrap([['to', join(folder, 'none', 't')]])).toThrow(/cannot be written/);
  });

  it('lets operations go on when the disk is full, and says so at the end', async () => {
    const twin = new TwinBackend();
    const backend = wrapTrace(twin, new Map([['to', join(folder, 't')]]));
    const queue = new Queue(backend.openQueue({ depth: 4 }), 4);
    disk.state = 'full';
    for (let i = 0; i < 20; i++) {
      expect((await one(queue, { op: Op.FLUSH })).code).toBe(Status.OK);
    }
    await queue.close();
    const failure = expect(backend.close()).rejects;
    await failure.toMatchObject({ code: 'TRACE_FAILED', cause: { code: 'ENOSPC' } });
    disk.state = 'well';
    expect(twin.closed).toBe(true);
  });

  it('marks where records are missing because the disk did not keep up', async () => {
    const file = join(folder, 't');
    const backend = wrapTrace(new TwinBackend(), new Map([['to', file]]));
    const queue = new Queue(backend.openQueue({ depth: 16 }), 16);
    const batch = Array.from({ length: 16 }, (_, tag) => ({ op: Op.FLUSH, tag }));
    disk.state = 'stalled';
    for (let i = 0; i < 1100; i++) await run(queue, ...batch);
    disk.state = 'well';
    for (const write of disk.stalled.splice(0)) write();
    await vi.waitFor(() => expect(statSync(file).size).toBeGreaterThan(7 * 4096 * 64));
    await new Promise((resolve) => setTimeout(resolve, 50));
    await run(queue, ...batch);
    await queue.close();
    await expect(backend.close()).rejects.toThrow(/records were lost/);
    const all = await records(file);
    const marks = all.filter((record) => record.kind === 'lost');
    expect(marks.length).toBe(1);
    expect(all.length - 1 + marks[0]!.lost).toBe(1101 * 32);
  });
});

describe('replay', () => {
  async function trace(file: string): Promise<TwinBackend> {
    return traced(file, async (queue) => {
      const buffer = memory.alloc(2048);
      const { address } = buffer;
      for (let lba = 0; lba < 32; lba += 4) {
        fillPattern(buffer.u8, lba);
        await one(queue, { op: Op.WRITE, blocks: 4, lba, address });
      }
      await run(
        queue,
        { op: Op.READ, blocks: 4, lba: 0, address },
        { op: Op.WRITE_ZEROES, blocks: 2, lba: 8 },
        { op: Op.COPY, blocks: 1, lba: 40, address: 1 },
        { op: Op.COMPARE, blocks: 1, lba: 0, address },
        { op: Op.FLUSH },
      );
    });
  }

  it.each([true, false])('issues the operations again (timed: %s)', async (timed) => {
    const file = join(folder, 't');
    await trace(file);
    const twin = new TwinBackend({ latencyPolls: 2 });
    const device = new BlockDevice(twin);
    const statistics = await replayTrace(file, device, { timed, depth: 4 });
    expect(statistics).toMatchObject({
      operations: 13,
      skipped: 0,
      errors: 0,
      bytesRead: 2048 + 512,
      bytesWritten: 8 * 2048,
      lost: 0,
    });
    expect(statistics.replayed.maxNs).toBeGreaterThan(0);
    expect(statistics.traced.maxNs).toBeGreaterThan(0);
    const writes = twin.log.filter(({ op, blocks }) => op === Op.WRITE && blocks === 4);
    expect(writes.map((w) => [w.lba, w.blocks])).toEqual(
      Array.from({ length: 8 }, (_, i) => [i * 4, 4]),
    );
    expect(Buffer.from(twin.block(5))).toEqual(Buffer.alloc(512, 0x5a));
    expect(Buffer.from(twin.block(8))).toEqual(Buffer.alloc(512));
    await device.close();
  });

  it('leaves out what the other device is too small for', async () => {
    const file = join(folder, 't');
    await trace(file);
    const device = new BlockDevice(new TwinBackend({ blocks: 16 }));
    const statistics = await replayTrace(file, device);
    expect(statistics).toMatchObject({ operations: 4 + 4, skipped: 5, errors: 0 });
    await device.close();
  });

  it('counts failures and goes on', async () => {
    const file = join(folder, 't');
    await trace(file);
    const twin = new TwinBackend();
    twin.fail = Status.MEDIA_ERROR;
    const device = new BlockDevice(twin);
    const statistics = await replayTrace(file, device);
    expect(statistics).toMatchObject({ errors: 13, firstError: Status.MEDIA_ERROR });
    await device.close();
  });

  it('keeps a pattern helper honest', () => {
    expect(pattern(64, 1)).not.toEqual(pattern(64, 2));
  });
});
