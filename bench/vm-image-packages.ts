// The packages of the images of vm-images.ts: what apt would install on each of five machines, from
// the mirrors that this machine's apt knows, downloaded and unpacked. Nothing is installed, and
// apt's own lists, cache and state are left alone: it works on a state in the scratch folder.
//
// Two versions of each package that has them: as the release has it, and as its updates have it.

import { execFile } from 'node:child_process';
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { PenstockError } from '../lib/errors.js';

export interface Machine {
  readonly name: string;
  /** With the release's updates. */
  readonly updated: boolean;
  /** What it has beside the base, and what those depend on. */
  readonly role: readonly string[];
}

export const MACHINES: readonly Machine[] = [
  { name: 'web-1', updated: false, role: ['nginx', 'php-fpm', 'php-mysql'] },
  { name: 'web-2', updated: true, role: ['nginx', 'php-fpm', 'php-mysql'] },
  { name: 'database', updated: false, role: ['mariadb-server'] },
  { name: 'build', updated: true, role: ['gcc', 'git', 'make'] },
  { name: 'mail', updated: false, role: ['postfix', 'dovecot-imapd', 'spamassassin'] },
];

/** What every machine has: patterns and names, as apt takes them. */
export const BASE: readonly string[] = [
  ...['?priority(required)', '?priority(important)'],
  ...['openssh-server', 'linux-image-cloud-amd64', 'python3', 'curl'],
];

/** A package in one version. */
export interface Package {
  readonly name: string;
  readonly version: string;
}

const UPDATES = ['*-security', '*-updates', '*-backports', '*-proposed-updates'];
const OUTPUT_BYTES_MAX = 64 << 20;
const UNPACKERS = 2;

const execute = promisify(execFile);

/** Runs a program; resolves with what it prints. Throws PEER_MISSING, PEER_FAILED. */
export async function runTool(
  program: string,
  args: readonly string[],
  options: { cwd?: string; env?: NodeJS.ProcessEnv } = {},
): Promise<{ stdout: string; stderr: string }> {
  try {
    // Where mke2fs and debugfs are, users other than root do not look.
    const PATH = `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`;
    const env = { ...process.env, PATH, LC_ALL: 'C', ...options.env };
    return await execute(program, args, { ...options, env, maxBuffer: OUTPUT_BYTES_MAX });
  } catch (cause) {
    const { code, stderr = '' } = cause as { code?: unknown; stderr?: string };
    if (code === 'ENOENT') {
      throw new PenstockError('PEER_MISSING', `${program} is not installed`, {
        hint: 'the images are made on Debian, with apt, dpkg and e2fsprogs: apt-get install them',
        exitCode: 3,
        cause,
      });
    }
    const said = stderr.trim().split('\n').slice(-3).join('; ');
    throw new PenstockError('PEER_FAILED', `${program} failed: ${said || String(cause)}`, {
      hint: `run it by hand: ${[program, ...args].join(' ').substring(0, 200)}`,
      cause,
    });
  }
}

/** The packages in `Inst NAME (VERSION …)` lines of a simulated installation, in its order. */
export function parsePlan(text: string): Package[] {
  return [...text.matchAll(/^Inst (\S+) \((\S+) /gm)].map(([, name = '', version = '']) => ({
    name,
    version,
  }));
}

/** Packages that `a` and `b` have in different versions. */
export function countChanged(a: readonly Package[], b: readonly Package[]): number {
  const versions = new Map(a.map(({ name, version }) => [name, version]));
  return b.filter(({ name, version }) => (versions.get(name) ?? version) !== version).length;
}

export class Apt {
  private readonly folder: string;
  private readonly options: readonly string[];

  /** `folder` is empty, and apt's from here on. */
  constructor(folder: string) {
    this.folder = folder;
    for (const name of ['state/lists/partial', 'cache/archives/partial', 'debs', 'trees']) {
      mkdirSync(join(folder, name), { recursive: true });
    }
    // Nothing is installed on the machines that apt is asked about.
    writeFileSync(join(folder, 'status'), '');
    writeFileSync(join(folder, 'updated'), '');
    writeFileSync(join(folder, 'release'), UPDATES.map(pinAway).join('\n'));
    this.options = [
      ...set('Dir::State', join(folder, 'state')),
      ...set('Dir::State::status', join(folder, 'status')),
      ...set('Dir::Cache', join(folder, 'cache')),
      ...set('Dir::Etc::PreferencesParts', '/dev/null'),
      // Root's apt would read the scratch folder as another user, who may not.
      ...set('APT::Sandbox::User', 'root'),
    ];
  }

  /** Reads what the mirrors have. Throws NO_PACKAGES. */
  async update(): Promise<void> {
    await this.reach(['update', '--error-on=any']);
  }

  /** What a machine has, in the order of an installation. Throws NO_PACKAGES. */
  async plan({ updated, role }: Machine): Promise<Package[]> {
    const preferences = join(this.folder, updated ? 'updated' : 'release');
    const { stdout } = await this.reach([
      ...set('Dir::Etc::Preferences', preferences),
      ...['--simulate', '--no-install-recommends', 'install', ...BASE, ...role],
    ]);
    return parsePlan(stdout);
  }

  /** Downloads packages, and unpacks each to a folder of its own: `treeOf`. */
  async fetch(packages: readonly Package[]): Promise<void> {
    const debs = join(this.folder, 'debs');
    const wanted = packages.map(({ name, version }) => `${name}=${version}`);
    await this.reach(['download', ...wanted], debs);
    const files = new Map(readdirSync(debs).map((file) => [file.replace(/_[^_]*$/, ''), file]));
    const left = [...packages];
    const lane = async (): Promise<void> => {
      for (let one = left.pop(); one !== undefined; one = left.pop()) {
        const file = files.get(`${one.name}_${one.version.replaceAll(':', '%3a')}`);
        if (file === undefined) throw noPackages(`apt brought no ${one.name} ${one.version}`);
        await runTool('dpkg-deb', ['--extract', join(debs, file), this.treeOf(one)]);
      }
    };
    await Promise.all(Array.from({ length: UNPACKERS }, lane));
  }

  treeOf({ name, version }: Package): string {
    return join(this.folder, 'trees', `${name}_${version}`);
  }

  private async reach(args: readonly string[], cwd = this.folder): Promise<{ stdout: string }> {
    try {
      return await runTool('apt-get', [...this.options, ...args], { cwd });
    } catch (cause) {
      if (!(cause instanceof PenstockError) || cause.code !== 'PEER_FAILED') throw cause;
      throw noPackages(cause.message, cause);
    }
  }
}

export function noPackages(message: string, cause?: unknown): PenstockError {
  return new PenstockError('NO_PACKAGES', message, {
    hint:
      'the images need a Debian mirror with a release and its updates in apt’s sources: ' +
      'see whether `apt-get update` works; `--images DIR` measures images that are there',
    exitCode: 3,
    cause,
  });
}

function set(name: string, value: string): string[] {
  return ['-o', `${name}=${value}`];
}

function pinAway(archive: string): string {
  return `Package: *\nPin: release n=${archive}\nPin-Priority: -1\n`;
}
