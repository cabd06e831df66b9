// Makes /proc and /sys trees for tests: a path whose value starts with '->' is a symbolic link.

import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { onTestFinished } from 'vitest';
import { type Root, fileRoot } from '../../lib/pci/index.js';

/** A root with these files; removed when the test ends. */
export function treeOf(files: Readonly<Record<string, string>>): Root {
  return fileRoot(folderWith(files));
}

/** Its folder on this machine. */
export function folderWith(files: Readonly<Record<string, string>>): string {
  const folder = mkdtempSync(join(tmpdir(), 'penstock-tree-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  for (const [path, text] of Object.entries(files)) {
    const at = join(folder, path);
    if (text === '/') {
      mkdirSync(at, { recursive: true });
      continue;
    }
    mkdirSync(dirname(at), { recursive: true });
    if (text.startsWith('->')) symlinkSync(text.slice(2).trim(), at);
    else writeFileSync(at, `${text}\n`);
  }
  return folder;
}
