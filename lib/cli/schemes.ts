// URI schemes that completion offers, with what each opens. Kept apart from lib/open.ts so that a
// completion script needs no driver loaded; a test holds the two equal.

export const SCHEMES: Readonly<Record<string, string>> = Object.freeze({
  dedup: 'a volume of a pool, on any other device',
  file: 'a file or a block device of the kernel',
  idc: 'a device that another process serves',
  null: 'a device that forgets',
  nvme: 'an NVMe namespace, driven from here',
  ram: 'a device in memory',
});
