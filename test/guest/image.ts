// What a guest boots: Debian's kernel, unpacked and not installed, and a first root file system.
//
// Both are made once and kept in a cache outside of the repository, so that clones share them and
// `npm ci` leaves them alone. Invariants: what is in the cache is complete, because it is made
// under another name and renamed; who comes second takes what the first made.

import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync } from 'node:fs';
import { renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { promisify } from 'node:util';
import { archive, type ArchiveEntry } from './cpio.js';
import { INIT_APPLETS, INIT_MODULES, INIT_SCRIPT } from './init.js';

export interface GuestImage {
  kernel: string;
  initramfs: string;
  /** What `modprobe -d` takes: the folder that holds lib/modules. */
  modules: string;
}

/** Why no guest can run here, and what to do about it. */
export class GuestUnavailable extends Error {
  override readonly name = 'GuestUnavailable';
}

export const QEMU = '/usr/bin/qemu-system-x86_64';

const PROGRAMS: readonly { path: string; package: string }[] = [
  { path: QEMU, package: 'qemu-system-x86' },
  { path: '/usr/bin/qemu-img', package: 'qemu-utils' },
  { path: '/bin/busybox', package: 'busybox-static' },
  { path: '/sbin/modprobe', package: 'kmod' },
  { path: '/usr/bin/setpriv', package: 'util-linux' },
];
const BUSYBOX = '/bin/busybox';
/** The package that depends on the kernel there is. */
const KERNEL_META_PACKAGE = 'linux-image-amd64';
const COMMAND_LIMIT_MS = 120_000;
const MAKING_LIMIT_MS = 3_600_000;
/** Drivers of hardware that no guest has: three quarters of a kernel package. */
const UNUSED = ['sound', 'drivers/gpu', 'drivers/media', 'drivers/net/wireless', 'drivers/staging'];

const runFile = promisify(execFile);

/** The image, made if it is not there yet; throws GuestUnavailable where it cannot be made. */
export async function guestImage(): Promise<GuestImage> {
  checkPrograms();
  const cache = cacheFolder();
  sweep(cache);
  const modules = kernelOf(cache) ?? (await fetchKernel(cache));
  const kernel = join(modules, 'boot', readdirSync(join(modules, 'boot'))[0]!);
  return { kernel, initramfs: await initramfsOf(cache, modules), modules };
}

/** Throws GuestUnavailable where a program that runs guests is missing. */
export function checkPrograms(): void {
  const missing = PROGRAMS.filter(({ path }) => !existsSync(path));
  if (missing.length === 0) return;
  const names = missing.map((program) => program.package).join(' ');
  throw new GuestUnavailable(`missing; as root: apt-get install ${names}`);
}

function cacheFolder(): string {
  const wished = process.env['PENSTOCK_GUEST_CACHE'];
  const base = process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache');
  const folders = [join(base, 'penstock-guest'), join(tmpdir(), 'penstock-guest-cache')];
  for (const folder of wished === undefined ? folders : [wished]) {
    try {
      mkdirSync(folder, { recursive: true });
      const probe = mkdtempSync(join(folder, 'probe-'));
      rmSync(probe, { recursive: true });
      return folder;
    } catch {
      // A home that cannot be written to: the next one serves.
    }
  }
  throw new GuestUnavailable('no folder for the kernel; PENSTOCK_GUEST_CACHE names one');
}

/** Removes what makers that were killed left. */
function sweep(cache: string): void {
  for (const name of readdirSync(cache)) {
    const path = join(cache, name);
    if (!/^(making|probe)-/.test(name)) continue;
    const facts = statSync(path, { throwIfNoEntry: false });
    const isOld = facts !== undefined && Date.now() - facts.mtimeMs > MAKING_LIMIT_MS;
    if (isOld) rmSync(path, { recursive: true, force: true });
  }
}

/** The newest kernel in the cache. */
function kernelOf(cache: string): string | undefined {
  const kernels = readdirSync(cache).filter((name) => name.startsWith('linux-image-'));
  const newest = kernels.sort(new Intl.Collator('en', { numeric: true }).compare).at(-1);
  return newest === undefined ? undefined : join(cache, newest);
}

async function fetchKernel(cache: string): Promise<string> {
  const folder = mkdtempSync(join(cache, 'making-'));
  try {
    const name = await download(folder);
    const unpacked = join(folder, 'unpacked');
    const [file] = readdirSync(folder).filter((candidate) => candidate.endsWith('.deb'));
    await command(folder, 'dpkg', '-x', join(folder, file!), unpacked);
    const release = readdirSync(join(unpacked, 'lib/modules'))[0]!;
    for (const unused of UNUSED) {
      const path = join(unpacked, 'lib/modules', release, 'kernel', unused);
      rmSync(path, { recursive: true, force: true });
    }
    for (const other of readdirSync(join(unpacked, 'boot'))) {
      if (!other.startsWith('vmlinuz-')) rmSync(join(unpacked, 'boot', other));
    }
    rmSync(join(unpacked, 'usr'), { recursive: true, force: true });
    await command(folder, '/sbin/depmod', '-b', unpacked, release);
    return moveInto(unpacked, join(cache, name));
  } catch (error) {
    if (error instanceof GuestUnavailable) throw error;
    throw new GuestUnavailable(`the guest's kernel cannot be had: ${String(error)}`);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Downloads the package of the kernel into `folder`; returns its name. */
async function download(folder: string): Promise<string> {
  if (!existsSync('/usr/bin/apt-get')) {
    throw new GuestUnavailable(`the guest's kernel is Debian's, and this machine has no apt-get`);
  }
  const attempt = async (): Promise<string> => {
    const shown = await command(folder, 'apt-cache', 'depends', KERNEL_META_PACKAGE);
    const name = /Depends: (linux-image-\S+)/.exec(shown)?.[1];
    if (name === undefined) throw new Error(`apt knows no ${KERNEL_META_PACKAGE}`);
    await command(folder, 'apt-get', 'download', '-q', name);
    return name;
  };
  try {
    return await attempt();
  } catch (error) {
    // Lists of packages that are missing or old name what is not there; only root renews them.
    if (process.getuid?.() !== 0) throw error;
    await command(folder, 'apt-get', 'update', '-q');
    return attempt();
  }
}

async function initramfsOf(cache: string, modules: string): Promise<string> {
  const busybox = readFileSync(BUSYBOX);
  const facts = [INIT_SCRIPT, INIT_APPLETS, INIT_MODULES, basename(modules)];
  const hash = createHash('sha256').update(JSON.stringify(facts)).update(busybox);
  const path = join(cache, `initramfs-${hash.digest('hex').slice(0, 16)}`);
  if (existsSync(path)) return path;
  const folder = mkdtempSync(join(cache, 'making-'));
  try {
    const made = join(folder, 'initramfs');
    writeFileSync(made, archive(await initramfsEntries(busybox, modules)));
    return moveInto(made, path);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function initramfsEntries(busybox: Buffer, modules: string): Promise<ArchiveEntry[]> {
  const folders = ['bin', 'sbin', 'dev', 'proc', 'sys', 'host', 'folder', 'keep', 'modules'];
  return [
    ...folders.map((path): ArchiveEntry => ({ path, kind: 'folder' })),
    { path: 'dev/console', kind: 'device', major: 5, minor: 1 },
    { path: 'dev/null', kind: 'device', major: 1, minor: 3 },
    { path: 'bin/busybox', kind: 'file', content: busybox },
    ...INIT_APPLETS.map((name): ArchiveEntry => ({
      path: `bin/${name}`,
      kind: 'link',
      target: 'busybox',
    })),
    { path: 'init', kind: 'file', content: INIT_SCRIPT },
    ...(await moduleFiles(modules)).map((file, index): ArchiveEntry => {
      const path = `modules/${String(index).padStart(2, '0')}-${basename(file)}`;
      return { path, kind: 'file', content: readFileSync(file) };
    }),
  ];
}

/** Files of the modules that the first program loads, what each depends on before it. */
async function moduleFiles(modules: string): Promise<string[]> {
  const release = readdirSync(join(modules, 'lib/modules'))[0]!;
  const files = new Set<string>();
  for (const name of INIT_MODULES) {
    const options = ['-d', modules, '-S', release, '--show-depends', name];
    const shown = await command(modules, '/sbin/modprobe', ...options);
    for (const [, file] of shown.matchAll(/^insmod (\S+)/gm)) files.add(file!);
  }
  return [...files];
}

/** Gives what was made its name; when another maker was first, that one's stays. */
function moveInto(made: string, path: string): string {
  try {
    renameSync(made, path);
  } catch (error) {
    if (!existsSync(path)) throw error;
  }
  return path;
}

async function command(folder: string, file: string, ...args: string[]): Promise<string> {
  const limits = { timeout: COMMAND_LIMIT_MS, killSignal: 'SIGKILL' } as const;
  const { stdout } = await runFile(file, args, { cwd: folder, encoding: 'utf8', ...limits });
  return stdout;
}
