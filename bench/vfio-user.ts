// The vfio-user client against an NVMe server that others wrote and that runs already: checks what
// a driver relies on, then times trapped register accesses.
//
//   PENSTOCK_VFIO_USER=DIR npm run bench:vfio-user     DIR has the server's socket (`cntrl`)
//
// Nothing is written to a namespace: the controller is never enabled.

import { addressSpace } from '../lib/memory/index.js';
import { native } from '../lib/native.js';
import { attachFunction, openVfioUser, type PciFunction } from '../lib/pci/index.js';

/** NVM Express base specification 2.0, section 3.1.3. */
const CAP = 0x00;
const VS = 0x08;
const INTMS = 0x0c;
const CSTS = 0x1c;
const AQA = 0x24;
const DOORBELLS = 0x1000;
const CLASS_NVME = 0x010802;
const READS = 2000;
const GRANULE_BYTES = 2 ** 21;

function check(what: string, ok: boolean, shown: unknown = ''): void {
  process.stdout.write(
    `${ok ? 'ok  ' : 'FAIL'} ${what}${shown === '' ? '' : `: ${String(shown)}`}\n`,
  );
  if (!ok) process.exitCode = 1;
}

function hex(value: number): string {
  return `0x${value.toString(16).padStart(8, '0')}`;
}

function checkRegisters(served: PciFunction): void {
  const bar = served.bar(0);
  check(
    'an NVMe controller',
    served.identity.classCode === CLASS_NVME,
    hex(served.identity.classCode),
  );
  check(
    'CAP',
    bar.read32(CAP) !== 0xffffffff,
    `${hex(bar.read32(CAP + 4))} ${hex(bar.read32(CAP))}`,
  );
  check('VS', bar.read32(VS) >>> 16 >= 1, hex(bar.read32(VS)));
  check('CSTS: not ready, not failed', (bar.read32(CSTS) & 3) === 0, hex(bar.read32(CSTS)));
  bar.write32(AQA, 0x001f001f);
  check('AQA keeps what is stored', bar.read32(AQA) === 0x001f001f, hex(bar.read32(AQA)));
  bar.write32(AQA, 0);
  check('INTMS reads', Number.isInteger(bar.read32(INTMS)));
  const doorbells = bar.words(DOORBELLS, 0x1000);
  check('doorbells at 0x1000 are mapped', doorbells !== null);
  check('registers before them are trapped', bar.words(CAP, 64) === null);
}

function checkMemory(served: PciFunction): void {
  const segments = [4096, GRANULE_BYTES].flatMap((pageBytes) => {
    try {
      return [addressSpace().create(4 * GRANULE_BYTES, { kind: 'device', pageBytes })];
    } catch {
      return []; // no hugepages here
    }
  });
  for (const segment of segments) {
    const reached = served.dma.reach(segment.address);
    const mapped = served.dma.map[segment.address / GRANULE_BYTES] === 3;
    check(`a device segment of ${segment.pageBytes}-byte pages is reached`, reached && mapped);
    segment.close();
  }
  served.dma.collect();
  served.dma.reap();
  check('closed segments are unmapped', !served.dma.stale);
}

async function checkControl(served: PciFunction): Promise<void> {
  served.enable();
  check('memory and bus master on', (served.config.read16(4) & 6) === 6);
  const fds = served.enableInterrupts(Math.min(served.vectors, 16));
  check('eventfds for vectors', fds.length > 0, `${fds.length} of ${served.vectors}`);
  check(
    'none signalled',
    fds.every((fd) => native.eventfdDrain(fd) === 0),
  );
  served.disableInterrupts();
  const there = await attachFunction(structuredClone(served.share()));
  check('attached: the same VS', there.bar(0).read32(VS) === served.bar(0).read32(VS));
  await there.close();
  await served.reset();
  check('reset, and still there', served.bar(0).read32(VS) !== 0xffffffff && !served.gone);
  served.quiesce();
}

function time(what: string, access: () => void): void {
  const times: number[] = [];
  for (let i = 0; i < READS; i++) {
    const start = performance.now();
    access();
    times.push((performance.now() - start) * 1000);
  }
  times.sort((a, b) => a - b);
  const at = (share: number) => times[Math.floor(share * (READS - 1))]!.toFixed(1).padStart(8);
  process.stdout.write(`${what.padEnd(24)} µs  p1 ${at(0.01)}  p50 ${at(0.5)}  p99 ${at(0.99)}\n`);
}

async function main(): Promise<void> {
  const path = process.env['PENSTOCK_VFIO_USER'];
  if (path === undefined) {
    process.stderr.write('PENSTOCK_VFIO_USER names no server: the folder with its socket\n');
    process.exitCode = 2;
    return;
  }
  const start = performance.now();
  const served = await openVfioUser(path);
  process.stdout.write(`opened in ${(performance.now() - start).toFixed(1)} ms\n`);
  try {
    checkRegisters(served);
    checkMemory(served);
    await checkControl(served);
    time('trapped read', () => served.bar(0).read32(VS));
    time('trapped write', () => served.bar(0).write32(AQA, 0));
    const doorbells = served.bar(0);
    time('mapped read', () => doorbells.read32(DOORBELLS + 0x100));
  } finally {
    const end = performance.now();
    await served.close();
    process.stdout.write(`closed in ${(performance.now() - end).toFixed(1)} ms\n`);
  }
}

await main();
