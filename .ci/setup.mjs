// Makes a fresh clone ready: packages of npm, the addon, dist. It runs before anything is installed,
// so that it uses Node alone. Every step is skipped when its result is there and newer than its input.
//
//   node .ci/setup.mjs            packages of npm, the addon and dist
//   node .ci/setup.mjs --system   also what the tests use of the system (as root: installs it),
//                                 and the kernel of their guests

import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  realpathSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** Debian packages the build and the tests use, and the file that shows that each is there. */
const SYSTEM_PACKAGES = [
  { name: 'g++', files: ['/usr/bin/g++'] },
  { name: 'make', files: ['/usr/bin/make'] },
  { name: 'cmake', files: ['/usr/bin/cmake', '/usr/local/bin/cmake'] },
  { name: 'python3', files: ['/usr/bin/python3', '/usr/local/bin/python3'] },
  { name: 'pkg-config', files: ['/usr/bin/pkg-config'] },
  { name: 'fio', files: ['/usr/bin/fio', '/usr/local/bin/fio'] },
  { name: 'liburing-dev', files: ['/usr/include/liburing.h', '/usr/local/include/liburing.h'] },
  { name: 'e2fsprogs', files: ['/sbin/mkfs.ext4', '/usr/sbin/mkfs.ext4'] },
  { name: 'util-linux', files: ['/sbin/losetup', '/usr/sbin/losetup'] },
  { name: 'mount', files: ['/bin/mount', '/usr/bin/mount'] },
  { name: 'zsh', files: ['/bin/zsh', '/usr/bin/zsh'] },
  { name: 'fish', files: ['/usr/bin/fish'] },
  { name: 'qemu-system-x86', files: ['/usr/bin/qemu-system-x86_64'] },
  { name: 'qemu-utils', files: ['/usr/bin/qemu-img'] },
  { name: 'busybox-static', files: ['/usr/share/doc/busybox-static'] },
  { name: 'kmod', files: ['/sbin/modprobe', '/usr/sbin/modprobe'] },
  { name: 'nvme-cli', files: ['/usr/sbin/nvme'] },
  { name: 'pciutils', files: ['/usr/bin/setpci', '/usr/sbin/setpci'] },
];

const ADDON = 'build/Release/penstock.node';
const DIST_STAMP = 'dist/.stamp';

function say(text) {
  process.stderr.write(`setup: ${text}\n`);
}

/** Runs a command with its output on stderr; throws when it fails. */
export function run(command, args, env = {}) {
  const done = spawnSync(command, args, {
    cwd: root,
    stdio: ['ignore', 2, 2],
    env: { ...process.env, ...env },
  });
  if (done.error !== undefined) throw done.error;
  if (done.status !== 0) {
    throw new Error(`${command} ${args.join(' ')} failed (${done.status ?? done.signal})`);
  }
}

/** Newest change below the paths in ms; folders count, so that a removed file does. */
function newestMs(paths) {
  let newest = 0;
  const visit = (path) => {
    const facts = statSync(path);
    newest = Math.max(newest, facts.mtimeMs);
    if (!facts.isDirectory()) return;
    for (const name of readdirSync(path)) visit(join(path, name));
  };
  for (const path of paths) if (existsSync(join(root, path))) visit(join(root, path));
  return newest;
}

function isNewer(result, inputs) {
  const path = join(root, result);
  return existsSync(path) && statSync(path).mtimeMs >= newestMs(inputs);
}

/** Whether what is installed is what the lock file says; optional packages may be missing. */
function isInstalled() {
  const read = (path) => JSON.parse(readFileSync(join(root, path), 'utf8')).packages;
  if (!existsSync(join(root, 'node_modules/.package-lock.json'))) return false;
  const installed = read('node_modules/.package-lock.json');
  return Object.entries(read('package-lock.json')).every(
    ([path, wanted]) =>
      path === '' ||
      wanted.optional === true ||
      wanted.devOptional === true ||
      installed[path]?.version === wanted.version,
  );
}

export function ensurePackages() {
  if (isInstalled()) return;
  say('npm ci');
  // --ignore-scripts: the addon is built below, once.
  run('npm', ['ci', '--no-audit', '--no-fund', '--ignore-scripts']);
}

export function ensureAddon() {
  if (isNewer(ADDON, ['native', 'binding.gyp'])) return;
  say('building the addon');
  run('npm', ['run', '--silent', 'build:native']);
}

export function ensureDist() {
  if (
    isNewer(DIST_STAMP, [
      'lib',
      'bench',
      'test/support',
      'test/soak',
      'test/guest',
      'tsconfig.json',
      'package.json',
    ])
  ) {
    return;
  }
  say('compiling TypeScript');
  const startedAt = new Date();
  run('npm', ['run', '--silent', 'build:ts']);
  mkdirSync(join(root, 'dist'), { recursive: true });
  writeFileSync(join(root, DIST_STAMP), `${startedAt.toISOString()}\n`);
}

/** Packages of npm, addon and dist, each only when it is missing or old. */
export function ensureBuilt() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major < 20 || (major === 20 && minor < 17)) {
    throw new Error(`Node 20.17 or later is needed; this is ${process.version}`);
  }
  ensurePackages();
  ensureAddon();
  ensureDist();
}

/** The kernel that guests boot, fetched once per machine; dist must be there. */
export function ensureGuest() {
  run(process.execPath, ['dist/test/guest/prepare.js']);
}

/** What the tests use of the system: installed as root on Debian, else named. */
export function ensureSystem() {
  const missing = SYSTEM_PACKAGES.filter(({ files }) => !files.some((file) => existsSync(file)));
  if (missing.length === 0) return;
  const names = missing.map(({ name }) => name);
  if (process.getuid() !== 0 || !existsSync('/usr/bin/apt-get')) {
    say(`missing, tests that need them will say so: ${names.join(' ')}`);
    say(`  as root: apt-get install ${names.join(' ')}`);
    return;
  }
  say(`installing ${names.join(' ')}`);
  const env = { DEBIAN_FRONTEND: 'noninteractive' };
  run('apt-get', ['update', '-q'], env);
  run('apt-get', ['install', '-q', '-y', '--no-install-recommends', ...names], env);
}

if (
  process.argv[1] !== undefined &&
  realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)
) {
  const system = process.argv.includes('--system');
  if (system) ensureSystem();
  ensureBuilt();
  if (system) ensureGuest();
}
