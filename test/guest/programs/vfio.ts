// Opens NVMe controllers of QEMU through VFIO and reports what that gave, step by step. Refusals
// are reported by their codes, with the hint. Modes other than `all` are run by it, as processes
// with another user or another domain.

import { spawnSync } from 'node:child_process';
import { closeSync, openSync, readdirSync, readlinkSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { PenstockError } from '../../../lib/errors.js';
import { addressSpace, GRANULE_BYTES } from '../../../lib/memory/index.js';
import { native } from '../../../lib/native.js';
import { openVfio, type PciFunction } from '../../../lib/pci/index.js';
import type { DomainSpace } from '../../../lib/pci/dma-space.js';
import { bindDriver, hear, loadModules, pciDevices, report, say } from '../inside.js';
import { identify, startController, stopController } from './nvme-registers.js';

const program = process.argv[1] ?? '';
const VS = 2;

/** Code and hint of the error that `attempt` ends with. */
async function refusal(attempt: () => unknown): Promise<unknown> {
  try {
    await attempt();
    return 'none';
  } catch (error) {
    if (!(error instanceof PenstockError)) return String(error);
    return { code: error.code, message: error.message, hint: error.hint };
  }
}

function openFds(): string[] {
  return readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)];
    } catch {
      return [];
    }
  });
}

/** The same program in another mode; what it reports comes as ours. */
function run(mode: string, address: string, before: readonly string[] = []): void {
  const [command = '', ...args] = [...before, process.execPath, program, mode, address];
  const { status, stderr } = spawnSync(command, args, {
    encoding: 'utf8',
    stdio: ['ignore', 'inherit', 'pipe', 3],
  });
  if (status !== 0) throw new Error(`${mode}: ${stderr}`);
}

async function refusals(address: string, companion: string): Promise<void> {
  report('no module', await refusal(() => openVfio(address)));
  loadModules('vfio-pci', 'nvme');
  report('no device', await refusal(() => openVfio('0000:7f:00.0')));
  bindDriver(address, 'nvme');
  report('not bound', await refusal(() => openVfio(address)));
  bindDriver(address, 'vfio-pci');
  run('denied', address, ['setpriv', '--reuid=65534', '--clear-groups']);
  bindDriver(companion, 'vfio-pci');
  report('not viable', await refusal(() => openVfio(companion)));
}

function describe(pci: PciFunction): void {
  report('identity', pci.identity);
  report('vectors', pci.vectors);
  report('capabilities', pci.config.capabilities());
  report('ranges', (pci.dma as DomainSpace).ranges);
  const bar = pci.bar(0);
  const words = bar.words(0, 4096)!;
  report('registers', { bytes: bar.bytes, vs: words[VS], byCall: bar.read32(8), capLow: words[0] });
  report('doorbells', bar.words(0x1000, 64)?.length);
}

/** A read-only segment of a file that the device may not write. */
function readOnlySegment() {
  const path = '/dev/shm/read-only';
  writeFileSync(path, Buffer.alloc(GRANULE_BYTES, 0x5a));
  const fd = openSync(path, 'r');
  const segment = addressSpace().import(fd, { bytes: GRANULE_BYTES, writable: false });
  closeSync(fd);
  return segment;
}

async function memory(pci: PciFunction): Promise<void> {
  const space = addressSpace();
  const mapped = (address: number) => pci.dma.map[address / GRANULE_BYTES];
  const own = space.create(3 * GRANULE_BYTES, { pageBytes: 4096 });
  const foreign = readOnlySegment();
  report('before reach', [mapped(own.address), mapped(foreign.address)]);
  report('reach', [pci.dma.reach(own.address + GRANULE_BYTES), pci.dma.reach(foreign.address)]);
  report('after reach', [mapped(own.address), mapped(foreign.address)]);

  const eventfds = pci.enableInterrupts(3);
  pci.enable();
  startController(pci, own);
  const control = pci.vectorControl(0);
  report('vector control', control === null ? null : control.words[control.index]);
  report('identify', identify(pci, own, own.address + 8192));
  report('interrupt', native.park(Int32Array.from([eventfds[0]!]), 10_000_000));
  native.eventfdDrain(eventfds[0]!);
  report(
    'serial',
    Buffer.from(own.u8.subarray(8192 + 4, 8192 + 24))
      .toString()
      .trim(),
  );
  report('identify into read-only', identify(pci, own, foreign.address));
  report(
    'read-only is untouched',
    foreign.u8.every((byte) => byte === 0x5a),
  );
  stopController(pci);

  foreign.close();
  own.close();
  report('closed', { stale: pci.dma.stale, byte: mapped(own.address) });
  pci.dma.collect();
  pci.dma.reap();
  report('reaped', {
    stale: pci.dma.stale,
    address: await refusal(() => pci.dma.reach(own.address)),
  });
}

async function resets(pci: PciFunction): Promise<void> {
  const words = pci.bar(0).words(0, 4096)!;
  words[5] = 0x00460001; // CC: enabled, though without queues
  await pci.reset();
  report('after reset', { cc: words[5], csts: words[7], vs: words[VS], gone: pci.gone });
}

/** Without the memory bit every access is a SIGBUS, which must not end the process. */
function loses(pci: PciFunction): void {
  const bar = pci.bar(0);
  const command = pci.config.read16(4);
  const before = { lost: bar.lost, gone: pci.gone };
  pci.config.write16(4, command & ~2);
  const value = bar.words(0, 16)![VS];
  report('memory bit cleared', { before, value, lost: bar.lost, gone: pci.gone });
  pci.config.write16(4, command);
}

/** A worker that opens the function itself, and ends with it open. */
async function inWorker(address: string): Promise<void> {
  const code = `
    const { parentPort } = require('node:worker_threads');
    import(${JSON.stringify(new URL('../../../lib/pci/index.js', import.meta.url).href)})
      .then(async ({ openVfio }) => {
        globalThis.pci = await openVfio(${JSON.stringify(address)});
        parentPort.postMessage(pci.bar(0).read32(8));
        setInterval(() => undefined, 1000);
      });
  `;
  const worker = new Worker(code, { eval: true });
  const vs = await new Promise((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });
  const busy = await refusal(() => openVfio(address));
  await worker.terminate();
  const again = await openVfio(address);
  report('worker', { vs, busy: (busy as { code: string }).code, again: again.bar(0).read32(8) });
  await again.close();
}

/** A worker that attaches to a function of this thread, which closes it meanwhile. */
async function attached(address: string): Promise<void> {
  const pci = await openVfio(address);
  pci.enableInterrupts(2);
  const worker = new Worker(new URL('./vfio-attached.js', import.meta.url), {
    workerData: pci.share(),
  });
  const next = () =>
    new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
  const seen = (await next()) as { address: number };
  report('attached', { ...seen, map: pci.dma.map[seen.address / GRANULE_BYTES] });
  await pci.close();
  worker.postMessage('closed');
  report('attached after close', await next());
  await worker.terminate();
}

async function opened(address: string): Promise<void> {
  const warm = await openVfio(address);
  await warm.close();
  const before = openFds();
  const pci = await openVfio(address);
  describe(pci);
  report('busy', await refusal(() => openVfio(address)));
  await memory(pci);
  await resets(pci);
  report('no such bar', await refusal(() => pci.bar(5)));
  loses(pci);
  const started = performance.now();
  await pci.close();
  await pci.close();
  report('closing took', performance.now() - started < 5000);
  report('descriptors', openFds().length - before.length);
}

/** QEMU unplugs the device while it is open; the test starts that when it is told. */
async function removal(address: string): Promise<void> {
  const pci = await openVfio(address);
  const asked = new Promise<void>((resolve) => (pci.onRemovalRequested = resolve));
  say('pull');
  const awake = setInterval(() => undefined, 1000); // listening alone does not keep a process alive
  await asked;
  clearInterval(awake);
  report('asked to remove', { vs: pci.bar(0).read32(8), gone: pci.gone });
  await pci.close();
  await hear();
  await sleep(100);
  report('removed', await refusal(() => openVfio(address)));
}

async function all(): Promise<void> {
  const of = (vendor: number, device: number, slot: RegExp) =>
    pciDevices().find(
      (one) => one.vendor === vendor && one.device === device && slot.test(one.address),
    )!.address;
  const steady = of(0x1b36, 0x10, /^0000:00:05/);
  const companion = of(0x1b36, 0x10, /^0000:00:06.1/);
  const pulled = of(0x1b36, 0x10, /^0000:01:/);
  await refusals(steady, companion);
  await opened(steady);
  run('far', steady);
  await inWorker(steady);
  await attached(steady);
  bindDriver(pulled, 'vfio-pci');
  await removal(pulled);
}

async function main(): Promise<void> {
  const [, , mode = 'all', address = ''] = process.argv;
  if (mode === 'all') return all();
  if (mode === 'denied') return report('denied', await refusal(() => openVfio(address)));
  // far: a domain whose slot lies beyond what the IOMMU translates.
  addressSpace().join(8);
  const pci = await openVfio(address);
  const segment = addressSpace().create(1, { pageBytes: 4096 });
  report('far', await refusal(() => pci.dma.reach(segment.address)));
  await pci.close();
}

await main();
