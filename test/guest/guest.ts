// A guest: QEMU in software emulation with Debian's kernel, Linux' VFIO, Intel's IOMMU and device
// models of QEMU, and in it one command of this repository, on the host's files.
//
//   const result = await runGuest({
//     command: ['node', 'dist/test/guest/programs/some.js'],
//     disks: { disk: { bytes: 2 ** 26 } },
//     devices: nvme({ serial: 'one', namespaces: ['disk'] }),
//     modules: ['vfio-pci'],
//   });
//
// startGuest gives a guest to talk to while it runs; its caller stops it. Timings in a guest say
// nothing about speed.
//
// Invariants: a guest ends with its command, its time limit, `stop` or the process that started it,
// whichever comes first, and then neither process nor file of it is left. `done` rejects unless the
// command came to its end.

import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { blockdev, type Disk, imageFiles } from './devices.js';
import { type GuestImage, guestImage, QEMU } from './image.js';
import { WRITABLE_FOLDERS } from './init.js';
import { LineSocket } from './lines.js';
import { Qmp, within } from './qmp.js';
import { TemporaryFolder, TetheredProcess } from './tether.js';

export interface GuestOptions {
  /** For messages. */
  name?: string;
  /** Program and arguments, run in the repository's root: `['node', 'dist/…', …]`. */
  command?: readonly string[];
  /** Text for /bin/sh in place of a command. */
  script?: string;
  /** Besides PATH, HOME and FOLDER, the folder of the guest that its test reads and writes. */
  env?: Readonly<Record<string, string>>;
  /** Arguments of QEMU, most of them from devices.ts. */
  devices?: readonly string[];
  /** Images by name; `devices` refer to them by it. */
  disks?: Readonly<Record<string, Disk>>;
  /** Of this process, for QEMU: there they are 3, 4, … */
  descriptors?: readonly number[];
  /** Loaded before the command starts. Nothing else loads a driver, except `modprobe`. */
  modules?: readonly string[];
  /** Default: true, with 39 bits of address; `awBits: 48` has more. */
  iommu?: boolean | { awBits: number };
  memoryMiB?: number;
  /** Two or more; with one, atomics on memory shared with others are none (see QEMU's TCG). */
  cpus?: number;
  /** 2 MiB pages to reserve. */
  hugepages?: number;
  kernelArgs?: readonly string[];
  /** From start to end of the guest. */
  timeoutMs?: number;
  /** After which a guest whose command has not started is reset, up to twice. */
  bootMs?: number;
}

export interface GuestResult {
  exitCode: number;
  stdout: string;
  stderr: string;
  /** `[seconds] text` lines, as dmesg shows them. */
  kernelLog: string;
  /** What the command reported by name (`report` in inside.ts). */
  results: Record<string, unknown>;
}

export class GuestError extends Error {
  override readonly name = 'GuestError';
  readonly reason: 'timeout' | 'crashed' | 'stopped';

  constructor(name: string, reason: GuestError['reason'], detail: string) {
    super(`guest ${name}: ${reason}${detail}`);
    this.reason = reason;
  }
}

const TIMEOUT_MS = 180_000;
/**
 * A boot takes 5 s, and several times that on a busy machine. In QEMU's emulation of two processors
 * (7.2) it stands still now and then: one of them spins, and nothing was printed yet.
 */
const BOOT_MS = 45_000;
const RESETS_MOST = 2;
const QUIT_LIMIT_MS = 5_000;
/** By how much a process that is stuck may outlive its guest's time limit. */
const GRACE_MS = 10_000;
/** How much of each output an error quotes. */
const TAIL_CHARACTERS = 4_000;
export const repositoryRoot = fileURLToPath(new URL(rootFrom(import.meta.url), import.meta.url));

/** This file is run from source by vitest and from dist by node. */
function rootFrom(url: string): string {
  return url.includes('/dist/test/guest/') ? '../../../' : '../../';
}

export async function runGuest(options: GuestOptions): Promise<GuestResult> {
  const guest = await startGuest(options);
  try {
    return await guest.done;
  } finally {
    await guest.stop();
  }
}

/** Starts a guest; resolves before it has booted. */
export async function startGuest(options: GuestOptions): Promise<Guest> {
  const image = await guestImage();
  const folder = new TemporaryFolder();
  let qemu: TetheredProcess | undefined;
  try {
    const disks = imageFiles(folder.path, options.disks ?? {});
    writeFileSync(folder.file('config.sh'), configOf(image, options));
    writeFileSync(folder.file('run.sh'), commandOf(folder.path, options));
    for (const name of ['stdout', 'stderr', 'kmsg']) writeFileSync(folder.file(name), '');
    const args = qemuArguments(folder, image, options, disks);
    const limitMs = (options.timeoutMs ?? TIMEOUT_MS) + GRACE_MS;
    const inherited = options.descriptors ?? [];
    qemu = new TetheredProcess(QEMU, args, folder.file('qemu'), limitMs, inherited);
    return await Guest.connect(options, folder, qemu, disks);
  } catch (cause) {
    await qemu?.stop();
    const said = qemu?.output() ?? '';
    folder.remove();
    // Devices that QEMU does not like end it within moments, and what it says is the reason.
    throw said === '' ? cause : new Error(`QEMU does not start: ${said}`, { cause });
  }
}

export class Guest {
  /** Folder that the guest has under the same path, writable in both. */
  readonly folder: string;
  /** Images by the name of their disk; they are there until `stop`. */
  readonly disks: Readonly<Record<string, string>>;
  readonly qmp: Qmp;
  /** Resolves with the end of the command; rejects with a GuestError. */
  readonly done: Promise<GuestResult>;
  private readonly name: string;
  private readonly temporary: TemporaryFolder;
  private readonly qemu: TetheredProcess;
  /** How often its boot was begun anew. */
  resets = 0;
  /** What the command has reported by name so far. */
  readonly results: Record<string, unknown> = {};
  private readonly messages: unknown[] = [];
  private readonly readers: ((message: unknown) => void)[] = [];
  private control!: LineSocket;
  private channel!: LineSocket;
  private exitCode: number | undefined;
  private failure: GuestError['reason'] = 'crashed';
  private onReady!: () => void;
  private onExit!: () => void;
  /** Resolves when the command starts, or the guest has ended. */
  readonly ready = new Promise<void>((resolve) => (this.onReady = resolve));
  private readonly exited = new Promise<void>((resolve) => (this.onExit = resolve));

  private constructor(
    options: GuestOptions,
    temporary: TemporaryFolder,
    qemu: TetheredProcess,
    disks: Record<string, string>,
    qmp: Qmp,
  ) {
    this.name = options.name ?? options.command?.join(' ') ?? 'with a script';
    this.temporary = temporary;
    this.folder = temporary.path;
    this.disks = disks;
    this.qemu = qemu;
    this.qmp = qmp;
    this.done = this.run(options.timeoutMs ?? TIMEOUT_MS);
    this.watchBoot(options.bootMs ?? BOOT_MS);
    // Whoever only talks to a guest and stops it does not wait for `done`.
    this.done.catch(() => undefined);
  }

  static async connect(
    options: GuestOptions,
    temporary: TemporaryFolder,
    qemu: TetheredProcess,
    disks: Record<string, string>,
  ): Promise<Guest> {
    const qmp = await Qmp.connect(temporary.file('qmp'), qemu);
    const guest = new Guest(options, temporary, qemu, disks, qmp);
    try {
      guest.control = await LineSocket.connect(temporary.file('control'), qemu, (line) =>
        guest.takeControl(line),
      );
      guest.channel = await LineSocket.connect(temporary.file('channel'), qemu, (line) =>
        guest.takeMessage(line),
      );
      return guest;
    } catch (error) {
      await guest.stop();
      throw error;
    }
  }

  /** A line for the command's stdin: text as it is, anything else as JSON. */
  send(message: unknown): void {
    this.channel.send(typeof message === 'string' ? message : JSON.stringify(message));
  }

  /** The next message of the command (`say` in inside.ts, or a line on its descriptor 3). */
  async message(limitMs = TIMEOUT_MS): Promise<unknown> {
    if (this.messages.length > 0) return this.messages.shift();
    const next = new Promise<unknown>((resolve) => this.readers.push(resolve));
    const end = this.done.then((result) => {
      throw new Error(`guest ${this.name} ended without a message: ${result.stderr}`);
    });
    return within(limitMs, `message of guest ${this.name}`, Promise.race([next, end]));
  }

  get stdout(): string {
    return readFileSync(join(this.folder, 'stdout'), 'utf8');
  }

  get stderr(): string {
    return readFileSync(join(this.folder, 'stderr'), 'utf8');
  }

  get kernelLog(): string {
    return readableLog(readFileSync(join(this.folder, 'kmsg'), 'utf8'));
  }

  /** What QEMU itself printed. */
  get qemuOutput(): string {
    return this.qemu.output();
  }

  /** Ends the guest, however far it is, and removes its files. */
  async stop(): Promise<void> {
    if (!this.qemu.hasEnded) this.failure = 'stopped';
    await this.qemu.stop();
    await this.done.catch(() => undefined);
    this.temporary.remove();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  private async run(timeoutMs: number): Promise<GuestResult> {
    const limit = setTimeout(() => {
      this.failure = 'timeout';
      void this.qemu.stop();
    }, timeoutMs);
    const ending = await Promise.race([this.exited, this.qemu.ended]);
    if (this.exitCode !== undefined) {
      // Faster than to wait for the guest to power off, and disks are written out all the same.
      await within(QUIT_LIMIT_MS, 'end of QEMU', this.quit()).catch(() => undefined);
      await this.qemu.stop();
    }
    clearTimeout(limit);
    for (const socket of [this.qmp, this.control, this.channel]) socket?.close();
    this.onReady();
    if (this.exitCode === undefined) throw this.explain(`QEMU ended with ${String(ending)}`);
    const { exitCode, stdout, stderr, kernelLog, results } = this;
    return { exitCode, stdout, stderr, kernelLog, results };
  }

  private watchBoot(bootMs: number): void {
    const timer = setInterval(() => {
      if (this.resets >= RESETS_MOST) clearInterval(timer);
      else void this.reset().catch(() => undefined); // it has ended meanwhile
    }, bootMs);
    void this.ready.then(() => {
      clearInterval(timer);
      if (this.resets > 0) void this.onReboot('shutdown').catch(() => undefined);
    });
  }

  private async reset(): Promise<void> {
    this.resets++;
    await this.onReboot('reset');
    await this.qmp.execute('system_reset');
  }

  /** A guest that reboots by itself has crashed, but firmware does so after a reset. */
  private async onReboot(reboot: 'reset' | 'shutdown'): Promise<void> {
    await this.qmp.execute('set-action', { reboot });
  }

  private async quit(): Promise<void> {
    await this.qmp.execute('quit').catch(() => undefined);
    await this.qemu.ended;
  }

  private explain(ending: string): GuestError {
    const console = readFileSync(join(this.folder, 'console'), 'utf8');
    const parts = { console, stdout: this.stdout, stderr: this.stderr, QEMU: this.qemuOutput };
    const detail = Object.entries(parts)
      .filter(([, text]) => text !== '')
      .map(([name, text]) => `\n${name}:\n${text.slice(-TAIL_CHARACTERS).trimEnd()}`);
    return new GuestError(this.name, this.failure, `\n${ending}${detail.join('')}`);
  }

  private takeControl(line: string): void {
    if (line === 'ready') this.onReady();
    const exit = /^exit (\d+)$/.exec(line);
    if (exit === null) return;
    this.exitCode = Number(exit[1]);
    this.onExit();
  }

  private takeMessage(line: string): void {
    const message = parsed(line);
    if (typeof message === 'object' && message !== null && 'report' in message) {
      const { report, value } = message as { report: string; value: unknown };
      this.results[report] = value;
      return;
    }
    const reader = this.readers.shift();
    if (reader === undefined) this.messages.push(message);
    else reader(message);
  }
}

function parsed(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return line;
  }
}

/** Records of /dev/kmsg (`priority,sequence,microseconds,flags;text`) as dmesg shows them. */
function readableLog(records: string): string {
  return records.replace(/^\d+,\d+,(\d+),[^;]*;/gm, (_all, microseconds: string) => {
    return `[${(Number(microseconds) / 1e6).toFixed(6)}] `;
  });
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** What init.ts reads before it runs the command. */
function configOf(image: GuestImage, options: GuestOptions): string {
  const needed = [repositoryRoot, dirname(process.execPath), image.modules];
  const covered = needed.filter((path) =>
    WRITABLE_FOLDERS.some((writable) => path.startsWith(`${writable}/`)),
  );
  return [
    `KEEP=${quoted(covered.join(' '))}`,
    `WRITABLE=${quoted(WRITABLE_FOLDERS.join(' '))}`,
    `MODULES=${quoted(image.modules)}`,
    `LOAD=${quoted((options.modules ?? []).join(' '))}`,
    `HUGEPAGES=${options.hugepages ?? 0}`,
    '',
  ].join('\n');
}

function commandOf(folder: string, { command, script, env }: GuestOptions): string {
  if ((command === undefined) === (script === undefined)) {
    throw new TypeError('a guest runs either a command or a script');
  }
  const path = ['/usr/sbin', '/usr/bin', '/sbin', '/bin'];
  const variables = {
    PATH: [dirname(process.execPath), ...path].join(':'),
    HOME: '/tmp',
    LANG: 'C.UTF-8',
    PENSTOCK_QUIET: '1',
    FOLDER: folder,
    ...env,
  };
  return [
    `cd ${quoted(repositoryRoot)}`,
    '. "${0%/*}/config.sh"',
    // kmod reads it: a plain `modprobe` then finds the modules of the guest's kernel.
    'export MODPROBE_OPTIONS="-d $MODULES"',
    ...Object.entries(variables).map(([name, value]) => `export ${name}=${quoted(value)}`),
    script ?? `exec ${command!.map(quoted).join(' ')}`,
    '',
  ].join('\n');
}

function qemuArguments(
  folder: TemporaryFolder,
  image: GuestImage,
  options: GuestOptions,
  disks: Record<string, string>,
): string[] {
  const iommu = options.iommu ?? true;
  const awBits = typeof iommu === 'object' ? `,aw-bits=${iommu.awBits}` : '';
  const kernelArgs = [
    'console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off random.trust_cpu=on',
    // A busy host keeps an emulated processor from running for longer than a kernel believes.
    'no_timer_check nowatchdog tsc=reliable rcupdate.rcu_cpu_stall_suppress=1',
    ...(iommu === false ? [] : ['intel_iommu=on iommu=pt']),
    `penstock_folder=${folder.path}`,
    ...(options.kernelArgs ?? []),
  ];
  const port = (name: string) => [
    ...['-chardev', `socket,id=penstock-${name},path=${folder.file(name)},server=on,wait=off`],
    ...['-device', `virtserialport,chardev=penstock-${name},name=penstock.${name}`],
  ];
  // The harness' own devices stand at the end of the bus, out of the way of a test's `addr`.
  return [
    ...['-machine', 'q35', '-accel', 'tcg,thread=multi', '-cpu', 'max'],
    ...['-smp', String(options.cpus ?? 2), '-m', `${options.memoryMiB ?? 512}M`],
    ...['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none', '-nic', 'none'],
    ...['-kernel', image.kernel, '-initrd', image.initramfs, '-append', kernelArgs.join(' ')],
    ...['-serial', `file:${folder.file('console')}`],
    ...['-qmp', `unix:${folder.file('qmp')},server=on,wait=off`],
    ...(iommu === false ? [] : ['-device', `intel-iommu,caching-mode=on${awBits}`]),
    ...share('host', '/', 'readonly=on', '1e.0'),
    ...share('folder', folder.path, 'readonly=off', '1e.1'),
    ...['-device', 'virtio-serial-pci,id=penstock-serial,addr=1e.2'],
    ...port('control'),
    ...port('channel'),
    ...Object.entries(options.disks ?? {}).flatMap(([name, disk]) =>
      blockdev(name, disks[name]!, disk),
    ),
    ...(options.devices ?? []),
  ];
}

function share(tag: string, path: string, access: string, addr: string): string[] {
  const how = `security_model=none,multidevs=remap,${access}`;
  const id = `penstock-${tag}`;
  const place = `mount_tag=${tag},addr=${addr}${addr.endsWith('.0') ? ',multifunction=on' : ''}`;
  return [
    ...['-fsdev', `local,id=${id},path=${path},${how}`],
    ...['-device', `virtio-9p-pci,fsdev=${id},${place}`],
  ];
}
