// The repository's files for its lint: what git tracks, or would with the next add.

import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const BINARY = /\.(png|jpe?g|ico|pcap|bin|gz)$/;

/** Paths from the repository's root, vendored sources left out. */
export function repositoryFiles(): string[] {
  const list = ['ls-files', '--cached', '--others', '--exclude-standard', '-z'];
  return execFileSync('git', list, { cwd: root, encoding: 'utf8' })
    .split('\0')
    .filter((file) => file !== '' && !file.includes('/vendor/') && !BINARY.test(file))
    .filter((file) => existsSync(join(root, file)) && !file.startsWith('node_modules'));
}

export function filesBelow(folder: string, ...endings: string[]): string[] {
  return repositoryFiles().filter(
    (file) => file.startsWith(`${folder}/`) && endings.some((ending) => file.endsWith(ending)),
  );
}

export function readText(file: string): string {
  return readFileSync(join(root, file), 'utf8');
}

export function fileExists(file: string): boolean {
  return existsSync(join(root, file));
}
