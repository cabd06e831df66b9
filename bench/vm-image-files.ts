// Raw disk images of vm-images.ts: an ext4 file system each, with the files of unpacked packages,
// one package after the other as an installation writes them. No root is needed, and the same
// packages make the same bytes: names are sorted, and times, UUID and hash seed follow the name.

import { createHash } from 'node:crypto';
import { lstatSync, readdirSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { join, posix } from 'node:path';
import { PenstockError } from '../lib/errors.js';
import { runTool } from './vm-image-packages.js';

/** Of each image; what no file needs is a hole. */
const IMAGE_SIZE = '1G';
/** When the first machine was installed; each of the others a day after the one before. */
const INSTALLED = 1_700_000_000;
const DAY = 86_400;

/** Makes the image of the machine with this number from the trees of its packages. */
export async function makeImage(
  path: string,
  name: string,
  number: number,
  trees: readonly string[],
  size = IMAGE_SIZE,
): Promise<void> {
  const time = String(INSTALLED + number * DAY);
  const env = { E2FSPROGS_FAKE_TIME: time, SOURCE_DATE_EPOCH: time };
  rmSync(path, { force: true });
  await runTool(
    'mke2fs',
    [
      ...['-q', '-F', '-t', 'ext4', '-b', '4096', '-L', name, '-U', uuidOf(name)],
      ...['-E', `hash_seed=${uuidOf(`hash ${name}`)},root_owner=0:0`, path, size],
    ],
    { env },
  );
  const script = `${path}.commands`;
  writeFileSync(script, fileCommands(trees).join('\n') + '\n');
  try {
    const { stderr } = await runTool('debugfs', ['-w', '-f', script, path], { env });
    // It ends with 0 whatever happens; its first line is its version.
    const said = stderr.split('\n').filter((line) => line !== '' && !/^debugfs \d/.test(line));
    if (said.length > 0) {
      throw new PenstockError('PEER_FAILED', `debugfs failed: ${said[0]}`, {
        hint: `an image has ${size} of room; what else it says: ${said.slice(1, 3).join('; ')}`,
      });
    }
  } finally {
    rmSync(script, { force: true });
  }
}

/** Commands of debugfs that make all files of the trees; of equal paths the first counts. */
export function fileCommands(trees: readonly string[]): string[] {
  const commands: string[] = [];
  const seen = new Set<string>(['/', '/lost+found']);
  let folder = '/';
  const enter = (wanted: string): void => {
    if (wanted !== folder) commands.push(`cd ${quoted(wanted)}`);
    folder = wanted;
  };
  for (const tree of trees) {
    /** First names of files with several. */
    const links = new Map<number, string>();
    const walk = (at: string): void => {
      for (const name of readdirSync(join(tree, at)).sort()) {
        const host = join(tree, at, name);
        const path = posix.join(at, name);
        const facts = lstatSync(host);
        if (facts.isDirectory()) {
          if (!seen.has(path)) {
            seen.add(path);
            enter(at);
            commands.push(`mkdir ${quoted(name)}`);
          }
          walk(path);
          continue;
        }
        if (seen.has(path)) continue;
        seen.add(path);
        enter(at);
        const first = links.get(facts.ino);
        const target = facts.isSymbolicLink() ? readlinkSync(host) : first;
        if (target !== undefined) commands.push(`symlink ${quoted(name)} ${quoted(target)}`);
        else if (facts.isFile()) {
          commands.push(`write ${quoted(host)} ${quoted(name)}`);
          // debugfs does not count names; a file of a second one is a link to the first.
          if (facts.nlink > 1) links.set(facts.ino, path);
        }
      }
    };
    walk('/');
  }
  return commands;
}

/** As debugfs reads words. */
function quoted(text: string): string {
  return `"${text.replaceAll('"', '""')}"`;
}

function uuidOf(text: string): string {
  const hex = createHash('sha256').update(text).digest('hex');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12}).*/, '$1-$2-$3-$4-$5');
}
