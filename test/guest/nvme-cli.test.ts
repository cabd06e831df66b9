// A real controller (QEMU's) as nvme-cli and penstock see it: first the kernel has it, then VFIO.
// Every field of every page, decoded by both from the same bytes.

import { beforeAll, describe, expect, it, type TestContext } from 'vitest';
import { existsSync } from 'node:fs';
import { jsonText } from '../../lib/cli/json-text.js';
import { idCtrlJson, idCtrlText } from '../../lib/cli/nvme-id-ctrl.js';
import { idNsJson, idNsText } from '../../lib/cli/nvme-id-ns.js';
import { errorLogJson, smartLogJson, smartLogText } from '../../lib/cli/nvme-logs.js';
import {
  checkController,
  checkNamespace,
  formatInUse,
  parseController,
  parseNamespace,
} from '../../lib/drivers/nvme/index.js';
import { range } from '../dedup/contents.js';
import { skipLoudly } from '../support/environment.js';
import { comparable } from '../support/nvme-pages.js';
import { guestImage, GuestUnavailable } from './image.js';
import { nvme } from './devices.js';
import { startGuest } from './guest.js';
import { lookAtPool, type PoolFacts } from './pool-inside.js';

const LIMIT_MS = 300_000;
const NSIDS = [1, 2, 3];

let missing = '';
let results: Record<string, unknown> = {};
/** What the host finds in the namespace's image. */
let onDisk: PoolFacts;

beforeAll(async () => {
  if (!existsSync('/usr/sbin/nvme')) missing = 'nvme-cli is not installed';
  try {
    await guestImage();
  } catch (error) {
    if (!(error instanceof GuestUnavailable)) throw error;
    missing = error.message;
  }
  if (missing !== '') return;
  await using guest = await startGuest({
    command: ['node', 'dist/test/guest/programs/nvme-commands.js'],
    disks: { one: { bytes: 2 ** 26 }, two: { bytes: 2 ** 25 }, three: { bytes: 2 ** 24 } },
    devices: nvme({
      serial: 'of-the-cli',
      mdts: 5,
      cmbMiB: 16,
      namespaces: [
        'one',
        { disk: 'two', logicalBlock: 4096 },
        { disk: 'three', metadataBytes: 8, protection: 1 },
      ],
    }),
    timeoutMs: LIMIT_MS,
  });
  const ended = await guest.done;
  expect(ended).toMatchObject({ exitCode: 0 });
  results = ended.results;
  onDisk = await lookAtPool(`file:${guest.disks['one']!}`);
}, LIMIT_MS + 10_000);

function needsGuest(context: Pick<TestContext, 'task' | 'skip'>): void {
  if (missing !== '') skipLoudly(context, missing);
}

function bytesOf(command: string): Uint8Array {
  const output = results[command];
  if (typeof output !== 'string') throw new Error(`no output of '${command}'`);
  return new Uint8Array(Buffer.from(output, 'base64'));
}

function textOf(command: string): string {
  return Buffer.from(bytesOf(command)).toString('utf8');
}

/** What nvme-cli printed of /dev/nvme0, by form. */
const peer = {
  page: (words: string) => bytesOf(`nvme ${words} -o binary`),
  text: (words: string) => textOf(`nvme ${words} -o normal`),
  json: (words: string) => comparable(textOf(`nvme ${words} -o json`)),
};

describe('of the same bytes nvme-cli and penstock say the same', () => {
  it('in id-ctrl', (context) => {
    needsGuest(context);
    const page = peer.page('id-ctrl /dev/nvme0');
    expect(comparable(jsonText(idCtrlJson(page)))).toEqual(peer.json('id-ctrl /dev/nvme0'));
    expect(idCtrlText(page)).toBe(peer.text('id-ctrl /dev/nvme0'));
    const controller = parseController(page);
    expect(controller).toMatchObject({ sn: 'of-the-cli', mn: 'QEMU NVMe Ctrl', mdts: 5 });
    expect(checkController(controller)).toEqual([]);
  });

  it.for(NSIDS)('in id-ns of namespace %i', (nsid, context) => {
    needsGuest(context);
    const words = `id-ns /dev/nvme0 -n ${nsid}`;
    const page = peer.page(words);
    expect(comparable(jsonText(idNsJson(page)))).toEqual(peer.json(words));
    expect(idNsText(page, nsid)).toBe(peer.text(words));
    const namespace = parseNamespace(page);
    expect(checkNamespace(namespace)).toEqual([]);
    expect(formatInUse(namespace)).toEqual({
      blockBytes: nsid === 2 ? 4096 : 512,
      metadataBytes: nsid === 3 ? 8 : 0,
      metadataInline: false,
      protection: nsid === 3 ? 1 : 0,
    });
  });

  it('in smart-log and error-log', (context) => {
    needsGuest(context);
    // Its counters may move between two commands.
    const page = peer.page('smart-log /dev/nvme0');
    const keys = Object.keys(peer.json('smart-log /dev/nvme0') as object);
    expect(Object.keys(smartLogJson(page))).toEqual(keys);
    expect(comparable(jsonText(smartLogJson(page)))).toMatchObject({ temperature: 323 });
    const labels = (text: string): string[] => text.split('\n').map((line) => line.split(':')[0]!);
    const text = smartLogText(page, 'nvme0', 0xffffffff);
    expect(labels(text)).toEqual(labels(peer.text('smart-log /dev/nvme0')));
    const errors = peer.page('error-log /dev/nvme0');
    expect(comparable(jsonText(errorLogJson(errors)))).toEqual(peer.json('error-log /dev/nvme0'));
  });

  it('in list, but for what sysfs does not say', (context) => {
    needsGuest(context);
    // nvme-cli lists in the order in which it comes across them.
    const listOf = (command: string) =>
      (comparable(textOf(command)) as { Devices: Record<string, unknown>[] }).Devices.sort(
        (a, b) => Number(a['NameSpace']) - Number(b['NameSpace']),
      );
    const ours = listOf('penstock list --json');
    const theirs = listOf('nvme list -o json');
    expect(theirs).toHaveLength(3);
    for (const [index, device] of theirs.entries()) {
      const { UsedBytes, ...rest } = device;
      expect(ours[index]).toMatchObject(rest);
      expect([null, UsedBytes]).toContainEqual(ours[index]?.['UsedBytes']);
    }
    const known = (text: string): string[] =>
      text
        .split('\n')
        .map((line) => [line.slice(0, 115), line.slice(126, 150)].join(''))
        .sort();
    expect(known(textOf('penstock list'))).toEqual(known(textOf('nvme list')));
  });
});

describe('over VFIO', () => {
  it('penstock gets the pages that the kernel got', (context) => {
    needsGuest(context);
    expect(bytesOf('penstock id-ctrl ADDRESS -b')).toEqual(peer.page('id-ctrl /dev/nvme0'));
    for (const nsid of NSIDS) {
      const page = peer.page(`id-ns /dev/nvme0 -n ${nsid}`);
      expect(bytesOf(`penstock id-ns ADDRESS -n ${nsid} -b`)).toEqual(page);
    }
    expect(bytesOf('penstock error-log ADDRESS -b')).toEqual(peer.page('error-log /dev/nvme0'));
    expect(bytesOf('penstock smart-log ADDRESS -b')).toHaveLength(512);
  });

  it('penstock shows registers, resets and lists', (context) => {
    needsGuest(context);
    const registers = comparable(textOf('penstock show-regs ADDRESS --json'));
    expect(registers).toMatchObject({ vs: 0x10400, cc: 0x460001 });
    expect(comparable(textOf('penstock reset ADDRESS --json'))).toMatchObject({ reset: true });
    const { Devices } = comparable(textOf('penstock list -o json')) as {
      Devices: Record<string, unknown>[];
    };
    const address = String(results['address']);
    expect(Devices.map(({ DevicePath, SectorSize }) => [DevicePath, SectorSize])).toEqual([
      [`nvme:${address}/1`, 512],
      [`nvme:${address}/2`, 4096],
      [`nvme:${address}/3`, 512],
    ]);
  });
});

describe('a pool on a namespace', () => {
  it('has its volumes in the guest, and for the host that opens the image', (context) => {
    needsGuest(context);
    const first = range(1, 512);
    const changed = first.map((content, i) => (i >= 400 ? 0 : content));
    changed.splice(100, 50, ...range(9000, 50));
    const contents = { a: changed, b: first, before: first };
    expect(results['pool']).toMatchObject({ contents, clean: true });
    // All that both volumes hold once, what was changed, and nodes of maps.
    const { used } = results['pool'] as PoolFacts;
    expect(used).toBeGreaterThanOrEqual(562);
    expect(used).toBeLessThan(600);
    expect(onDisk).toEqual(results['pool']);
  });
});
