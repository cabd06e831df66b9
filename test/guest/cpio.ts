// An archive that Linux unpacks as its first root file system: cpio's `newc` format
// (Documentation/driver-api/early-userspace/buffer-format.rst). Written here because the tool of
// that name takes device nodes from the file system only, where making them needs root.

const MODE_FOLDER = 0o040755;
const MODE_FILE = 0o100755;
const MODE_LINK = 0o120777;
const MODE_CHARACTER_DEVICE = 0o020600;

export type ArchiveEntry = { path: string } & (
  | { kind: 'folder' }
  | { kind: 'file'; content: Buffer | string }
  | { kind: 'link'; target: string }
  | { kind: 'device'; major: number; minor: number }
);

/** The archive's bytes; folders must come before what lies in them. Paths have no leading slash. */
export function archive(entries: readonly ArchiveEntry[]): Buffer {
  const parts = entries.flatMap((entry, index) => member(entry, index + 1));
  parts.push(...record('TRAILER!!!', 0, 0, Buffer.alloc(0), 0, 0));
  return Buffer.concat(parts);
}

function member(entry: ArchiveEntry, inode: number): Buffer[] {
  const { path } = entry;
  const none = Buffer.alloc(0);
  switch (entry.kind) {
    case 'folder':
      return record(path, inode, MODE_FOLDER, none, 0, 0);
    case 'file':
      return record(path, inode, MODE_FILE, Buffer.from(entry.content), 0, 0);
    case 'link':
      return record(path, inode, MODE_LINK, Buffer.from(entry.target), 0, 0);
    case 'device':
      return record(path, inode, MODE_CHARACTER_DEVICE, none, entry.major, entry.minor);
  }
}

function record(
  path: string,
  inode: number,
  mode: number,
  content: Buffer,
  major: number,
  minor: number,
): Buffer[] {
  const name = Buffer.from(`${path}\0`);
  // inode, mode, uid, gid, links, time, bytes, device of the file, device it stands for, name
  const fields = [inode, mode, 0, 0, 1, 0, content.length, 0, 0, major, minor, name.length, 0];
  const header = Buffer.from(
    `070701${fields.map((value) => value.toString(16).padStart(8, '0')).join('')}`,
  );
  return [header, name, padding(header.length + name.length), content, padding(content.length)];
}

function padding(bytes: number): Buffer {
  return Buffer.alloc(-bytes & 3);
}
