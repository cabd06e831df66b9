// Device models of QEMU without a guest: registers by QEMU's test protocol (docs/devel/qtest.rst),
// one call and some 60 µs each, and DMA into segments of this process, without any copy.
//
//   const machine = await Qtest.start({ devices: nvme({ … }), disks: { … } });
//   const controller = new PciBus(machine).place(4); // qtest-pci.ts
//   machine.attach(segment);                  // from now on the device reaches it, at its Address
//
// The processor is there and halted by its first instruction: a machine that is stopped instead has
// a clock that stands still and a network that takes nothing.
//
// Invariants: guest-physical address = Address for every attached segment. All calls are
// synchronous and end with QEMU at the latest, which ends at its time limit.

import { closeSync, writeFileSync } from 'node:fs';
import { addressSpace, type Segment } from '../../lib/memory/index.js';
import { blockdev, type Disk, imageFiles } from '../guest/devices.js';
import { QEMU } from '../guest/image.js';
import { poll, TemporaryFolder, TetheredProcess } from '../guest/tether.js';
import { PipeLines } from './pipe-lines.js';

export interface QtestOptions {
  /** Arguments of QEMU, most of them from test/guest/devices.ts. */
  devices: readonly string[];
  disks?: Readonly<Record<string, Disk>>;
  /** How long the machine is there at most. */
  timeoutMs?: number;
}

interface QmpMessage {
  id?: number;
  return?: unknown;
  error?: { desc: string };
  event?: string;
  data?: Record<string, unknown>;
}

const TIMEOUT_MS = 60_000;
const START_LIMIT_MS = 20_000;
const GIBIBYTE = 2 ** 30;
/** Addresses per domain, in GiB. */
const DOMAIN_GIBIBYTES = 64;
const SLOTS_MAX = 255;
/** `cli; hlt; jmp` to the hlt, where an x86 begins; firmware has whole 64 KiB. */
const FIRMWARE_BYTES = 65_536;
const RESET_VECTOR = 0xfff0;
const HALT = [0xfa, 0xf4, 0xeb, 0xfd];
/** The ports by which a guest gives memory back (docs/specs/acpi_mem_hotplug.rst). */
const MEMORY_SLOT_PORT = 0xa00;
const MEMORY_FLAGS_PORT = 0xa14;
const MEMORY_EJECT = 0x08;

export class Qtest {
  /** Images by the name of their disk; there until `close`. */
  readonly disks: Readonly<Record<string, string>>;
  /** Events of the monitor that came so far. */
  readonly events: QmpMessage[] = [];
  private readonly folder: TemporaryFolder;
  private readonly qemu: TetheredProcess;
  private readonly registers: PipeLines;
  private readonly monitor: PipeLines;
  private readonly attached = new Map<number, number>();
  private nextId = 1;

  private constructor(
    folder: TemporaryFolder,
    qemu: TetheredProcess,
    disks: Record<string, string>,
    registers: PipeLines,
    monitor: PipeLines,
  ) {
    this.folder = folder;
    this.qemu = qemu;
    this.disks = disks;
    this.registers = registers;
    this.monitor = monitor;
  }

  static async start(options: QtestOptions): Promise<Qtest> {
    const folder = new TemporaryFolder();
    const opened: PipeLines[] = [];
    let qemu: TetheredProcess | undefined;
    try {
      const paths = ['qtest', 'qmp'].map((name) => folder.file(name));
      paths.forEach(PipeLines.make);
      const disks = imageFiles(folder.path, options.disks ?? {});
      const args = machineArguments(folder, disks, options);
      const limitMs = options.timeoutMs ?? TIMEOUT_MS;
      qemu = new TetheredProcess(QEMU, args, folder.file('qemu'), limitMs);
      for (const path of paths) opened.push(await pipesOf(path, qemu));
      const machine = new Qtest(folder, qemu, disks, opened[0]!, opened[1]!);
      machine.monitor.read(); // its greeting
      machine.execute('qmp_capabilities');
      machine.inb(0); // answered when its devices are there
      return machine;
    } catch (cause) {
      await qemu?.stop();
      for (const pipes of opened) pipes.close();
      const said = qemu?.output() ?? '';
      folder.remove();
      throw said === '' ? cause : new Error(`QEMU does not start: ${said}`, { cause });
    }
  }

  inb(port: number): number {
    return this.get(`inb ${port}`);
  }

  inw(port: number): number {
    return this.get(`inw ${port}`);
  }

  inl(port: number): number {
    return this.get(`inl ${port}`);
  }

  outb(port: number, value: number): void {
    this.command(`outb ${port} ${value}`);
  }

  outw(port: number, value: number): void {
    this.command(`outw ${port} ${value}`);
  }

  outl(port: number, value: number): void {
    this.command(`outl ${port} ${value >>> 0}`);
  }

  readb(address: number): number {
    return this.get(`readb ${address}`);
  }

  readw(address: number): number {
    return this.get(`readw ${address}`);
  }

  readl(address: number): number {
    return this.get(`readl ${address}`);
  }

  readq(address: number): bigint {
    return BigInt(this.command(`readq ${address}`));
  }

  writeb(address: number, value: number): void {
    this.command(`writeb ${address} ${value}`);
  }

  writew(address: number, value: number): void {
    this.command(`writew ${address} ${value}`);
  }

  writel(address: number, value: number): void {
    this.command(`writel ${address} ${value >>> 0}`);
  }

  writeq(address: number, value: bigint): void {
    this.command(`writeq ${address} ${value}`);
  }

  /** Bytes at an address as a device would see them. */
  read(address: number, bytes: number): Buffer {
    return Buffer.from(this.command(`read ${address} ${bytes}`).slice(2), 'hex');
  }

  /** A command of the monitor (QMP). */
  execute(command: string, args: Record<string, unknown> = {}): unknown {
    const id = this.nextId++;
    this.monitor.send(JSON.stringify({ execute: command, arguments: args, id }));
    for (;;) {
      const message = JSON.parse(this.monitor.read()) as QmpMessage;
      if (message.id !== id) this.events.push(message);
      else if (message.error === undefined) return message.return;
      else throw new Error(`QMP ${command}: ${message.error.desc}`);
    }
  }

  /** Waits for an event, one of the past included. */
  event(name: string, matches: (event: QmpMessage) => boolean = () => true): QmpMessage {
    for (let index = 0; ; index++) {
      if (index === this.events.length) {
        this.events.push(JSON.parse(this.monitor.read()) as QmpMessage);
      }
      const event = this.events[index]!;
      if (event.event === name && matches(event)) return event;
    }
  }

  /** Lets devices reach a segment (of kind `device`) at its address. */
  attach(segment: Pick<Segment, 'address' | 'bytes' | 'descriptor'>): void {
    const { address, bytes } = segment;
    const fd = segment.descriptor();
    try {
      this.execute('object-add', {
        'qom-type': 'memory-backend-file',
        id: `memory-${address}`,
        share: true,
        'mem-path': `/proc/${process.pid}/fd/${fd}`,
        size: bytes,
      });
      const slot = freeSlot(this.attached);
      const place = { id: `dimm-${address}`, memdev: `memory-${address}`, addr: address, slot };
      this.execute('device_add', { driver: 'pc-dimm', ...place });
      this.attached.set(address, slot);
    } finally {
      closeSync(fd);
    }
  }

  /** Takes it from them; what they then read there is nothing, and what they write is dropped. */
  detach(address: number): void {
    const slot = this.attached.get(address);
    if (slot === undefined) throw new RangeError(`no segment at ${address} is attached`);
    const id = `dimm-${address}`;
    // A request to the guest, which is not there: it is answered here, as ACPI code would.
    this.execute('device_del', { id });
    this.outl(MEMORY_SLOT_PORT, slot);
    this.outb(MEMORY_FLAGS_PORT, MEMORY_EJECT);
    this.event('DEVICE_DELETED', ({ data }) => data?.['device'] === id);
    this.execute('object-del', { id: `memory-${address}` });
    this.attached.delete(address);
  }

  /** What QEMU printed. */
  get output(): string {
    return this.qemu.output();
  }

  async close(): Promise<void> {
    await this.qemu.stop();
    this.registers.close();
    this.monitor.close();
    this.folder.remove();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Sends a line of the protocol; returns what follows OK in its answer. */
  private command(line: string): string {
    this.registers.send(line);
    const answer = this.registers.read();
    if (!answer.startsWith('OK')) throw new Error(`qtest ${line}: ${answer}`);
    return answer.slice(3);
  }

  private get(line: string): number {
    return Number(this.command(line));
  }
}

async function pipesOf(path: string, qemu: TetheredProcess): Promise<PipeLines> {
  const attempt = (): PipeLines | undefined => {
    if (qemu.hasEnded) throw new Error('QEMU has ended');
    return PipeLines.open(path);
  };
  return poll(attempt, START_LIMIT_MS, () => new Error('QEMU does not come up'));
}

function freeSlot(attached: ReadonlyMap<number, number>): number {
  const taken = new Set(attached.values());
  let slot = 0;
  while (taken.has(slot)) slot++;
  return slot;
}

function machineArguments(
  folder: TemporaryFolder,
  disks: Record<string, string>,
  options: QtestOptions,
): string[] {
  const firmware = Buffer.alloc(FIRMWARE_BYTES, HALT[1]);
  firmware.set(HALT, RESET_VECTOR);
  writeFileSync(folder.file('firmware'), firmware);
  // Memory to plug has all the addresses up to the end of this process's domain, whatever of them
  // is used.
  const last = (addressSpace().domain + 1) * DOMAIN_GIBIBYTES * GIBIBYTE;
  return [
    ...['-machine', 'q35', '-accel', 'tcg', '-cpu', 'max', '-bios', folder.file('firmware')],
    ...['-m', `size=128M,slots=${SLOTS_MAX},maxmem=${last / GIBIBYTE}G`],
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-nic', 'none'],
    ...['-qtest', `pipe:${folder.file('qtest')}`, '-qtest-log', '/dev/null'],
    ...['-qmp', `pipe:${folder.file('qmp')}`],
    ...Object.entries(options.disks ?? {}).flatMap(([name, disk]) =>
      blockdev(name, disks[name]!, disk),
    ),
    ...options.devices,
  ];
}
