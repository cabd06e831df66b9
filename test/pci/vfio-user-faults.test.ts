// What a vfio-user server can do wrong: at opening, at a request, by its death. Each has its error,
// takes a bounded time and leaves nothing open.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { addressSpace, GRANULE_BYTES } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { openVfioUser, type PciFunction } from '../../lib/pci/index.js';
import { openFds, untilFds } from '../native/support.js';
import {
  DEVICE_ID,
  Register,
  VfioUserServer,
  Word,
  type Fault,
  type ServerOptions,
} from '../support/vfio-user-server.js';

const VERSION = 1;
const GET_INFO = 4;
const GET_REGION_INFO = 5;
const GET_IRQ_INFO = 7;
const REGION_READ = 9;
const RESET = 13;
/** Where the server is to be too late; elsewhere a busy machine must not be. */
const SHORT_MS = 400;
const LONG_MS = 20_000;

let folder: string;
let path: string;
let before: Set<string>;
/** One for all tests that want the same of it: starting a thread takes longer than most of them. */
let server: VfioUserServer | undefined;
let served = '';
let functions: PciFunction[];

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-vfio-user-'));
});

afterAll(async () => {
  await server?.stop();
  rmSync(folder, { recursive: true });
});

beforeEach(() => {
  path = join(folder, 'socket');
  functions = [];
  before = openFds();
});

afterEach(async () => {
  for (const each of functions) await each.close();
  if (server?.ended !== true) return untilFds(before);
  server = undefined;
});

async function serve(options: Partial<ServerOptions> = {}): Promise<VfioUserServer> {
  const wanted = JSON.stringify(options);
  if (server !== undefined && served === wanted) return server;
  await server?.stop();
  served = wanted;
  server = await VfioUserServer.start({ path, ...options });
  before = openFds();
  return server;
}

async function openHere(timeoutMs = LONG_MS): Promise<PciFunction> {
  const opened = await openVfioUser(path, { timeoutMs });
  functions.push(opened);
  return opened;
}

/** The error of opening; what was opened in place of that is closed. */
async function openingError(timeoutMs = LONG_MS): Promise<unknown> {
  try {
    await openHere(timeoutMs);
  } catch (error) {
    return error;
  }
  throw new Error('it was opened');
}

describe('opening', () => {
  it.each([
    ['nothing', () => (path = join(folder, 'nothing'))],
    ['a file', () => writeFileSync((path = join(folder, 'file')), '')],
    ['a path too long', () => (path = join(folder, 'x'.repeat(120)))],
    ['a folder without a socket', () => (path = folder)],
  ])('%s is NO_SUCH_SOCKET', async (_what, make) => {
    make();
    expect(await openingError()).toMatchObject({ code: 'NO_SUCH_SOCKET' });
  });

  it('a socket that nobody serves is CONNECTION_REFUSED', async () => {
    path = join(folder, 'left');
    native.fileClose(native.streamListen(path, 0o600));
    expect(await openingError()).toMatchObject({ code: 'CONNECTION_REFUSED' });
    rmSync(path);
    const listener = native.unixListen(path, 0o600);
    expect(await openingError()).toMatchObject({ code: 'CONNECTION_REFUSED' });
    native.fileClose(listener);
  });

  it('a server that serves somebody else is BUSY', async () => {
    await serve();
    const first = await openHere();
    expect(await openingError(SHORT_MS)).toMatchObject({ code: 'BUSY' });
    expect(first.bar(0).read32(Register.id)).toBe(DEVICE_ID);
    await first.close();
    expect((await openHere()).gone).toBe(false);
  });

  it('a server that says it is busy is BUSY', async () => {
    (await serve()).fail('refuse as busy', VERSION);
    expect(await openingError()).toMatchObject({ code: 'BUSY' });
  });

  it.each([
    [{ version: [1, 0] as const }],
    [{ version: [0, 2] as const }],
    [{ json: '{"capabilities":{"max_msg_fds":0}}\0' }],
  ])('a server with %o is VERSION_UNSUPPORTED', async (options) => {
    await serve(options);
    expect(await openingError()).toMatchObject({ code: 'VERSION_UNSUPPORTED' });
  });

  it.each(['refuse', 'close', 'die'] as const)('a version answered by %s', async (fault) => {
    (await serve()).fail(fault, VERSION);
    expect(await openingError()).toMatchObject({ code: 'VERSION_UNSUPPORTED' });
    if (fault === 'die') await server!.stop();
  });

  it.each(['', '\0', '{}\0', '{"capabilities":{}}\0', '{"capabilities":null}', '{"a":1}'])(
    'takes a server that says of itself %j',
    async (json) => {
      await serve({ json });
      expect((await openHere()).bar(0).read32(Register.id)).toBe(DEVICE_ID);
    },
  );

  it.each(['x', '{"capabilities":{"max_msg_fds":"many"}}', '{"capabilities":{"max_msg_fds":-1}}'])(
    'does not take one that says %j',
    async (json) => {
      await serve({ json });
      expect(await openingError()).toMatchObject({ code: 'PROTOCOL_ERROR' });
    },
  );

  it.each([
    // Command, word of the reply's body, value, replies before.
    ['no PCI function', GET_INFO, 1, 1, 0],
    ['few regions', GET_INFO, 2, 7, 0],
    ['a config space too small', GET_REGION_INFO, 4, 64, 0],
    ['another region', GET_REGION_INFO, 2, 5, 1],
    ['a region of 2^52 bytes', GET_REGION_INFO, 5, 2 ** 20, 1],
    ['a region of 2^63 bytes', GET_REGION_INFO, 5, -(2 ** 31), 1],
    ['a region beyond any file', GET_REGION_INFO, 7, -1, 1],
    ['a region that needs too much room', GET_REGION_INFO, 0, 2 ** 30, 1],
    ['a capability outside the reply', GET_REGION_INFO, 3, 4096, 1],
    ['a capability in the header', GET_REGION_INFO, 3, 4, 1],
    ['a capability at an odd place', GET_REGION_INFO, 3, 33, 1],
    ['capabilities without end', GET_REGION_INFO, 9, 34, 1],
    ['too many areas', GET_REGION_INFO, 14, 3, 1],
    ['a great many areas', GET_REGION_INFO, 14, -1, 1],
    ['an area outside its region', GET_REGION_INFO, 16, 0x4000, 1],
    ['an area far outside', GET_REGION_INFO, 17, 1, 1],
    ['an area too large', GET_REGION_INFO, 19, -1, 1],
    ['vectors of another kind', GET_IRQ_INFO, 2, 0, 0],
    ['too many vectors', GET_IRQ_INFO, 3, 4096, 0],
  ])('a server with %s is PROTOCOL_ERROR', async (_what, command, place, value, skip) => {
    (await serve()).twist(command, place, value, skip);
    expect(await openingError()).toMatchObject({
      code: 'PROTOCOL_ERROR',
      message: expect.stringMatching(/expected .*, came /) as string,
    });
  });

  it.each([
    ['an area that is no whole page', 18, 100],
    ['an area between pages', 16, 100],
    ['an empty area', 18, 0],
  ])('%s is trapped, the rest is mapped', async (_what, place, value) => {
    (await serve()).twist(GET_REGION_INFO, place, value, 1);
    const bar = (await openHere()).bar(0);
    expect(bar.words(Register.mapped, 4096)).toBeNull();
    expect(bar.words(Register.mapped2, 4096)).not.toBeNull();
    bar.write32(Register.mapped, 8);
    expect(bar.read32(Register.mapped)).toBe(8);
  });

  it('capabilities in a loop end', async () => {
    (await serve()).twist(GET_REGION_INFO, 9, 32, 1);
    // None of them is the one that says what to map: the whole region is.
    expect((await openHere()).bar(0).words(0, 4096)).not.toBeNull();
  });

  it.each([GET_INFO, GET_REGION_INFO, GET_IRQ_INFO])(
    'command %i that is refused or answered with nothing is PROTOCOL_ERROR',
    async (command) => {
      await serve();
      for (const fault of ['refuse', 'empty'] as const) {
        server!.fail(fault, command);
        expect(await openingError()).toMatchObject({ code: 'PROTOCOL_ERROR' });
      }
    },
  );

  it.each([VERSION, GET_INFO, GET_REGION_INFO, GET_IRQ_INFO, REGION_READ])(
    'gives up at command %i and leaves nothing open',
    async (command) => {
      await serve();
      const idle = openFds();
      for (const fault of ['wrong id', 'cut short', 'huge', 'close', 'silence'] as const) {
        server!.fail(fault, command);
        // Whatever the error: some of these look like silence to the client.
        const error = await openingError(SHORT_MS);
        expect(error).toMatchObject({ code: expect.any(String) as string });
        await untilFds(idle);
      }
    },
  );
});

describe('a request', () => {
  const ending: [Fault, string][] = [
    ['silence', 'TIMED_OUT'],
    ['flood', 'TIMED_OUT'],
    ['late', 'TIMED_OUT'],
    ['close', 'DEVICE_GONE'],
    ['die', 'DEVICE_GONE'],
    ['cut short', 'DEVICE_GONE'],
    ['wrong id', 'PROTOCOL_ERROR'],
    ['wrong command', 'PROTOCOL_ERROR'],
    ['huge', 'PROTOCOL_ERROR'],
    ['tiny', 'PROTOCOL_ERROR'],
    ['too many descriptors', 'PROTOCOL_ERROR'],
  ];

  it.each(ending)('answered by %s ends it: %s', async (fault, code) => {
    await serve();
    const opened = await openHere(code === 'TIMED_OUT' ? SHORT_MS : LONG_MS);
    const segment = addressSpace().create(GRANULE_BYTES, { kind: 'device', pageBytes: 4096 });
    opened.dma.reach(segment.address);
    const words = opened.bar(0).words(Register.mapped, 4096)!;
    words[0] = 1;
    server!.fail(fault, RESET);
    await expect(opened.reset()).rejects.toMatchObject({ code });
    // From here on nothing is asked any more, and everything fails at once.
    const requests = server!.count(Word.requests);
    expect(opened.gone).toBe(true);
    expect(opened.bar(0).read32(Register.id)).toBe(0xffffffff);
    opened.bar(0).write32(Register.scratch, 1);
    expect(words[0]).toBe(0xffffffff);
    expect(opened.bar(0).lost).toBe(true);
    expect(opened.config.read16(0)).toBe(0xffff);
    opened.enable();
    opened.quiesce();
    await expect(opened.reset()).rejects.toMatchObject({
      code: 'DEVICE_GONE',
      cause: expect.objectContaining({ code }) as unknown,
    });
    expect(() => opened.enableInterrupts(1)).toThrow(
      expect.objectContaining({ code: 'DEVICE_GONE' }),
    );
    segment.close();
    opened.dma.collect();
    opened.dma.reap();
    expect(opened.dma.stale).toBe(false);
    if (fault !== 'late') expect(server!.count(Word.requests)).toBe(requests);
    if (fault === 'die') await server!.stop();
  });

  it.each(['descriptors', 'ask first'] as const)('survives %s', async (fault) => {
    await serve();
    const opened = await openHere();
    const fds = openFds();
    const refusals = server!.count(Word.refusals);
    server!.fail(fault, REGION_READ);
    expect(opened.bar(0).read32(Register.id)).toBe(DEVICE_ID);
    await untilFds(fds);
    expect(opened.bar(0).read32(Register.id)).toBe(DEVICE_ID);
    if (fault === 'ask first') await server!.until(Word.refusals, refusals + 2);
  });

  it('that is answered twice ends it at the next', async () => {
    await serve();
    const opened = await openHere();
    server!.fail('reply twice', REGION_READ);
    expect(opened.bar(0).read32(Register.id)).toBe(DEVICE_ID);
    await expect(opened.reset()).rejects.toMatchObject({ code: 'PROTOCOL_ERROR' });
  });

  it.each([
    ['offset', 0, 4],
    ['offset', 1, 1],
    ['region', 2, 1],
    ['count', 3, 8],
  ])('for a register that is answered for another %s ends it', async (_what, place, value) => {
    await serve();
    const opened = await openHere();
    server!.twist(REGION_READ, place, value);
    expect(opened.bar(0).read32(Register.id)).toBe(0xffffffff);
    expect(opened.gone).toBe(true);
  });
});

describe('the death of the server', () => {
  it('is noticed without a request', async () => {
    await serve();
    const opened = await openHere();
    const words = opened.bar(0).words(Register.mapped, 4096)!;
    words[1] = 1;
    await server!.stop();
    for (let i = 0; i < 1000 && !opened.gone; i++) {
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    expect(opened.gone).toBe(true);
    expect(words[1]).toBe(0xffffffff);
    await opened.close();
  });

  it('is noticed by a driver that only polls, when a register looks odd', async () => {
    await serve();
    const opened = await openHere();
    const bar = opened.bar(0);
    bar.write32(Register.mapped, 0);
    expect(bar.read32(Register.mapped)).toBe(0);
    expect(opened.gone).toBe(false);
    await server!.stop();
    bar.read32(Register.mapped);
    expect(opened.gone).toBe(true);
    expect(bar.read32(Register.mapped)).toBe(0xffffffff);
  });
});
