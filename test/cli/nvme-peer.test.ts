// Our texts and JSON against nvme-cli's own, of the same bytes: pages made at random, every field.
// nvme-cli gets them by a library that stands before it (nvme-peer.c).

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it, type TestContext } from 'vitest';
import { jsonText } from '../../lib/cli/json-text.js';
import { idCtrlJson, idCtrlText } from '../../lib/cli/nvme-id-ctrl.js';
import { idNsJson, idNsText } from '../../lib/cli/nvme-id-ns.js';
import { errorLogJson, errorLogText, smartLogJson, smartLogText } from '../../lib/cli/nvme-logs.js';
import { showRegsJson, showRegsText } from '../../lib/cli/nvme-regs.js';
import {
  CONTROLLER_LAYOUT,
  POWER_STATE_LAYOUT,
  SMART_LAYOUT,
} from '../../lib/drivers/nvme/index.js';
import type { Layout } from '../../lib/wire/index.js';
import { comparable, randomBytes, signless } from '../support/nvme-pages.js';
import { skipLoudly } from '../support/environment.js';

const SEEDS = Array.from({ length: 6 }, (_, seed) => seed + 1);
const folder = mkdtempSync(join(tmpdir(), 'penstock-nvme-peer-'));
const library = join(folder, 'peer.so');
let missing = '';

beforeAll(() => {
  if (!existsSync('/usr/sbin/nvme')) missing = 'nvme-cli is not installed';
  const source = join(dirname(fileURLToPath(import.meta.url)), 'nvme-peer.c');
  const built = spawnSync('cc', ['-shared', '-fPIC', '-O1', '-o', library, source, '-ldl']);
  if (built.status !== 0) missing ||= `no nvme-peer.so: ${built.stderr?.toString() ?? built.error}`;
  const { stdout } = spawnSync('/usr/sbin/nvme', ['version'], { encoding: 'utf8' });
  // Later versions have other columns and more fields.
  if (!/^nvme version 2\.3\b/.test(stdout ?? '')) missing ||= 'nvme-cli is not 2.3';
  mkdirSync(join(folder, 'device'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function nvme(...args: string[]): string {
  const { stdout, stderr, status } = spawnSync('/usr/sbin/nvme', args, {
    env: { ...process.env, LC_ALL: 'C', LD_PRELOAD: library, NVME_PEER: folder },
    encoding: 'utf8',
  });
  // show-regs -o json ends with 1 although it did all it should.
  expect(stderr).toBe('');
  if (args[0] !== 'show-regs') expect(status).toBe(0);
  return stdout;
}

function give(name: string, page: Uint8Array): void {
  if (missing !== '') throw new Error(missing);
  writeFileSync(join(folder, name), page);
}

/** Printable text in the text fields, as drives have it. */
function withText(page: Uint8Array, layout: Layout): Uint8Array {
  for (const { name, offset, bytes } of layout.fields) {
    if (!['sn', 'mn', 'fr', 'subnqn'].includes(name)) continue;
    for (let at = offset; at < offset + bytes; at++) page[at] = 0x21 + (page[at]! % 0x5d);
    if (name !== 'fr') page.fill(0x20, offset + bytes - 3, offset + bytes);
  }
  return page;
}

function controllerPage(seed: number): Uint8Array {
  const page = withText(randomBytes(4096, seed), CONTROLLER_LAYOUT);
  page[263] = seed % 32;
  page[262] = 7;
  return page;
}

function needsPeer(context: Pick<TestContext, 'task' | 'skip'>): void {
  if (missing !== '') skipLoudly(context, missing);
}

describe.each(SEEDS)('nvme-cli and penstock on pages of seed %i', (seed) => {
  it('agree on id-ctrl', (context) => {
    needsPeer(context);
    const page = controllerPage(seed);
    if (seed === 3) page.fill(0, 768, 1024); // no subnqn
    give('identify-1-0', page);
    const ours = jsonText(idCtrlJson(page));
    expect(Object.keys(comparable(ours) as object)).toEqual(
      Object.keys(comparable(nvme('id-ctrl', '/dev/nvme0', '-o', 'json')) as object),
    );
    expect(comparable(ours)).toEqual(comparable(nvme('id-ctrl', '/dev/nvme0', '-o', 'json')));
    const small = signless(signless(page, CONTROLLER_LAYOUT), POWER_STATE_LAYOUT, 2048, 32);
    give('identify-1-0', small);
    expect(idCtrlText(small)).toBe(nvme('id-ctrl', '/dev/nvme0'));
  });

  it('agree on id-ns', (context) => {
    needsPeer(context);
    const page = randomBytes(4096, seed);
    page[25] = seed * 3;
    page[82] = seed % 3;
    if (page[25] + page[82] < 16) page[26]! &= 0x1f;
    give('identify-0-1', page);
    const json = nvme('id-ns', '/dev/nvme0', '-n', '1', '-o', 'json');
    expect(comparable(jsonText(idNsJson(page)))).toEqual(comparable(json));
    expect(Object.keys(idNsJson(page))).toEqual(Object.keys(comparable(json) as object));
    expect(idNsText(page, 1)).toBe(nvme('id-ns', '/dev/nvme0', '-n', '1'));
  });

  it('agree on smart-log', (context) => {
    needsPeer(context);
    const page = randomBytes(512, seed);
    // Counters of every size, and sensors that are not there.
    for (let at = 32; at < 192; at += 16) page.fill(0, at + (seed % 16), at + 16);
    page.fill(0, 200 + seed, 216);
    give('log-2', page);
    const json = nvme('smart-log', '/dev/nvme0', '-o', 'json');
    expect(comparable(jsonText(smartLogJson(page)))).toEqual(comparable(json));
    expect(Object.keys(smartLogJson(page))).toEqual(Object.keys(comparable(json) as object));
    const small = signless(page, SMART_LAYOUT);
    give('log-2', small);
    expect(smartLogText(small, 'nvme0', 0xffffffff)).toBe(nvme('smart-log', '/dev/nvme0'));
  });

  it('agree on error-log', (context) => {
    needsPeer(context);
    give('identify-1-0', controllerPage(seed));
    const page = randomBytes(512, seed);
    give('log-1', page);
    const json = nvme('error-log', '/dev/nvme0', '-o', 'json');
    expect(comparable(jsonText(errorLogJson(page)))).toEqual(comparable(json));
    // These two lines are in words of our own.
    const ownWords = /^(status_field\t: \w+|trtype\t\t: ).*$/gm;
    expect(errorLogText(page, 'nvme0').replace(ownWords, '$1')).toBe(
      nvme('error-log', '/dev/nvme0').replace(ownWords, '$1'),
    );
  });

  it('agree on show-regs', (context) => {
    needsPeer(context);
    const dump = randomBytes(4096, seed);
    if (seed === 5) dump.fill(0xff, 8, 12);
    give('device/resource0', dump);
    const json = nvme('show-regs', '/dev/nvme0', '-o', 'json');
    expect(comparable(jsonText(showRegsJson(dump)))).toEqual(comparable(json));
    expect(Object.keys(showRegsJson(dump))).toEqual(Object.keys(comparable(json) as object));
    expect(showRegsText(dump)).toBe(nvme('show-regs', '/dev/nvme0'));
  });
});
