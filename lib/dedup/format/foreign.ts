// What others put at the head of a device, so that a pool is not made over it unasked: magic
// numbers as the specifications of those formats give them.

/** Bytes from the start of a device in which they stand. */
export const FOREIGN_BYTES = 68 << 10;

/** Where it stands, its bytes, what it is. */
const MAGICS: readonly (readonly [number, string, string])[] = [
  [0, 'XFSB', 'an XFS file system'],
  [1080, '\x53\xef', 'an ext2, ext3 or ext4 file system'],
  [65600, '_BHRfS_M', 'a btrfs file system'],
  [4120, '\xc6\x85\x73\xf6\x4e\x1a\x45\xca', 'a bcache or bcachefs device'],
  [1024, '\xe2\xe1\xf5\xe0', 'an EROFS file system'],
  [32769, 'CD001', 'an ISO 9660 file system'],
  [4086, 'SWAPSPACE2', 'swap space'],
  [0, 'LUKS\xba\xbe', 'a LUKS volume'],
  [512, 'LABELONE', 'an LVM physical volume'],
  [0, '\xfc\x4e\x2b\xa9', 'a member of a Linux RAID'],
  [4096, '\xfc\x4e\x2b\xa9', 'a member of a Linux RAID'],
  [0, 'dmvdo001', 'a VDO volume'],
  [0, 'SPDKBLOB', 'an SPDK blobstore'],
  [0, 'QFI\xfb', 'a qcow2 image'],
  [512, 'EFI PART', 'a GPT partition table'],
  [4096, 'EFI PART', 'a GPT partition table'],
  // Last: boot sectors of file systems and disks with a GPT have it, too.
  [510, '\x55\xaa', 'an MBR partition table or boot sector'],
];

/** What the head of a device, of FOREIGN_BYTES, says that the device holds; null: nothing known. */
export function foreignIn(head: Uint8Array): string | null {
  const text = Buffer.from(head.buffer, head.byteOffset, head.byteLength).toString('latin1');
  for (const [at, magic, what] of MAGICS) if (text.startsWith(magic, at)) return what;
  return null;
}
