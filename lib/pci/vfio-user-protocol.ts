// The vfio-user protocol: commands, structures and flags, as both ends of a connection use them.
//
// A message is a header of 16 bytes and a body; all numbers are little-endian. Bodies are those of
// Linux's VFIO (linux/vfio.h), with descriptors beside the bytes (SCM_RIGHTS). The specification is
// docs/interop/vfio-user.rst of QEMU; protocol version 0.1. Offsets are of the body.

import { layout } from '../wire/index.js';

/** What we propose; a server answers with the same major and a minor that is not above. */
export const enum Version {
  major = 0,
  minor = 1,
}

export const enum Command {
  version = 1,
  dmaMap = 2,
  dmaUnmap = 3,
  getInfo = 4,
  getRegionInfo = 5,
  getIrqInfo = 7,
  setIrqs = 8,
  regionRead = 9,
  regionWrite = 10,
  /** From the server, to memory that it has no descriptor of. */
  dmaRead = 11,
  dmaWrite = 12,
  reset = 13,
}

/** 32-bit words: the first is messageId | command << 16, the third has all flags (HeaderFlag). */
export const enum Header {
  messageId = 0,
  bytes = 1,
  type = 2,
  error = 3,
  words = 4,
}

export const HEADER_BYTES = 16;

export const enum HeaderFlag {
  typeMask = 0xf,
  command = 0,
  reply = 1,
  noReply = 0x10,
  error = 0x20,
}

export const HEADER_LAYOUT = layout('vfio_user_header', 16, 'vfio-user, Header', [
  { name: 'messageId', offset: 0, bytes: 2, meaning: 'chosen by who asks, repeated in the reply' },
  { name: 'command', offset: 2, bytes: 2, meaning: 'what is asked, or what is replied to' },
  { name: 'bytes', offset: 4, bytes: 4, meaning: 'of the whole message, this header included' },
  { name: 'type', offset: 8, bytes: 4, bits: [0, 3], meaning: '0 command, 1 reply' },
  { name: 'noReply', offset: 8, bytes: 4, bits: [4, 4], meaning: 'a command without a reply' },
  { name: 'failed', offset: 8, bytes: 4, bits: [5, 5], meaning: 'a reply: nothing was done' },
  { name: 'error', offset: 12, bytes: 4, meaning: 'errno of a reply that failed, or 0' },
]);

/** A request that says how much the reply may be begins with that number of bytes. */
const ARGSZ = {
  name: 'argsz',
  offset: 0,
  bytes: 4,
  meaning: 'of this structure; in a reply what all of it would take',
} as const;

export const enum DeviceInfo {
  argsz = 0,
  flags = 1,
  regions = 2,
  irqs = 3,
  words = 4,
}

export const enum DeviceFlag {
  reset = 1,
  pci = 2,
}

export const DEVICE_INFO_LAYOUT = layout(
  'vfio_user_device_info',
  16,
  'vfio-user, DEVICE_GET_INFO',
  [
    ARGSZ,
    { name: 'flags', offset: 4, bytes: 4, meaning: '1 has a reset, 2 is a PCI function' },
    { name: 'regions', offset: 8, bytes: 4, meaning: 'number of regions' },
    { name: 'irqs', offset: 12, bytes: 4, meaning: 'number of kinds of interrupts' },
  ],
);

export const enum RegionInfo {
  argsz = 0,
  flags = 1,
  index = 2,
  capOffset = 3,
  sizeLo = 4,
  sizeHi = 5,
  offsetLo = 6,
  offsetHi = 7,
  words = 8,
}

export const enum RegionFlag {
  read = 1,
  write = 2,
  mmap = 4,
  caps = 8,
}

/** Regions of a PCI function: 0 to 5 are its BARs. */
export const enum RegionIndex {
  bars = 6,
  config = 7,
}

export const REGION_INFO_LAYOUT = layout('vfio_region_info', 32, 'linux/vfio.h', [
  ARGSZ,
  { name: 'flags', offset: 4, bytes: 4, meaning: '1 read, 2 write, 4 may be mapped, 8 has caps' },
  { name: 'index', offset: 8, bytes: 4, meaning: 'which region' },
  { name: 'capOffset', offset: 12, bytes: 4, meaning: 'of the first capability; 0: none' },
  { name: 'size', offset: 16, bytes: 8, meaning: 'of the region; 0: there is none' },
  {
    name: 'offset',
    offset: 24,
    bytes: 8,
    meaning: 'of the region in the descriptor that came along',
  },
]);

/** A capability of a region: the parts of it that may be mapped. */
export const enum SparseCap {
  id = 0,
  next = 1,
  areas = 2,
  words = 4,
}

export const SPARSE_CAP_ID = 1;

/** Its entries, one for each part. */
export const enum SparseArea {
  offsetLo = 0,
  offsetHi = 1,
  sizeLo = 2,
  sizeHi = 3,
  words = 4,
}

export const SPARSE_CAP_LAYOUT = layout('vfio_region_info_cap_sparse_mmap', 16, 'linux/vfio.h', [
  { name: 'id', offset: 0, bytes: 2, meaning: '1 for this capability' },
  { name: 'version', offset: 2, bytes: 2, meaning: '1' },
  { name: 'next', offset: 4, bytes: 4, meaning: 'offset of the next capability; 0: none' },
  { name: 'areas', offset: 8, bytes: 4, meaning: 'how many follow' },
  { name: 'reserved', offset: 12, bytes: 4, meaning: '0' },
]);

export const SPARSE_AREA_LAYOUT = layout('vfio_region_sparse_mmap_area', 16, 'linux/vfio.h', [
  { name: 'offset', offset: 0, bytes: 8, meaning: 'in the region' },
  { name: 'size', offset: 8, bytes: 8, meaning: 'in bytes' },
]);

export const enum IrqInfo {
  argsz = 0,
  flags = 1,
  index = 2,
  count = 3,
  words = 4,
}

export const enum IrqIndex {
  intx = 0,
  msi = 1,
  msix = 2,
}

export const IRQ_INFO_LAYOUT = layout('vfio_irq_info', 16, 'linux/vfio.h', [
  ARGSZ,
  { name: 'flags', offset: 4, bytes: 4, meaning: '1 by eventfd, 2 maskable, 4 masks itself' },
  { name: 'index', offset: 8, bytes: 4, meaning: '0 INTx, 1 MSI, 2 MSI-X, 3 errors, 4 requests' },
  { name: 'count', offset: 12, bytes: 4, meaning: 'vectors of this kind' },
]);

export const enum IrqSet {
  argsz = 0,
  flags = 1,
  index = 2,
  start = 3,
  count = 4,
  words = 5,
}

export const enum IrqFlag {
  none = 1,
  eventfd = 4,
  trigger = 0x20,
}

export const IRQ_SET_LAYOUT = layout('vfio_irq_set', 20, 'linux/vfio.h', [
  ARGSZ,
  { name: 'flags', offset: 4, bytes: 4, meaning: '1 no data, 4 eventfds; 0x20 trigger' },
  { name: 'index', offset: 8, bytes: 4, meaning: 'which kind of interrupt' },
  { name: 'start', offset: 12, bytes: 4, meaning: 'first vector' },
  {
    name: 'count',
    offset: 16,
    bytes: 4,
    meaning: 'number of vectors; 0 with no data disables all',
  },
]);

export const enum RegionAccess {
  offsetLo = 0,
  offsetHi = 1,
  region = 2,
  count = 3,
  words = 4,
}

export const REGION_ACCESS_LAYOUT = layout(
  'vfio_user_region_access',
  16,
  'vfio-user, REGION_READ',
  [
    { name: 'offset', offset: 0, bytes: 8, meaning: 'in the region' },
    { name: 'region', offset: 8, bytes: 4, meaning: 'which region' },
    {
      name: 'count',
      offset: 12,
      bytes: 4,
      meaning: 'bytes of data, which follow where there are any',
    },
  ],
);

export const enum DmaMap {
  argsz = 0,
  flags = 1,
  offsetLo = 2,
  offsetHi = 3,
  addressLo = 4,
  addressHi = 5,
  sizeLo = 6,
  sizeHi = 7,
  words = 8,
}

export const enum DmaFlag {
  read = 1,
  write = 2,
}

export const DMA_MAP_LAYOUT = layout('vfio_user_dma_map', 32, 'vfio-user, DMA_MAP', [
  ARGSZ,
  { name: 'flags', offset: 4, bytes: 4, meaning: '1 the device may read, 2 write' },
  { name: 'offset', offset: 8, bytes: 8, meaning: 'in the descriptor that comes along' },
  { name: 'address', offset: 16, bytes: 8, meaning: 'IOVA of the first byte' },
  { name: 'size', offset: 24, bytes: 8, meaning: 'in bytes' },
]);

export const enum DmaUnmap {
  argsz = 0,
  flags = 1,
  addressLo = 2,
  addressHi = 3,
  sizeLo = 4,
  sizeHi = 5,
  words = 6,
}

export const DMA_UNMAP_LAYOUT = layout('vfio_user_dma_unmap', 24, 'vfio-user, DMA_UNMAP', [
  ARGSZ,
  { name: 'flags', offset: 4, bytes: 4, meaning: '0' },
  { name: 'address', offset: 8, bytes: 8, meaning: 'IOVA, as it was mapped' },
  { name: 'size', offset: 16, bytes: 8, meaning: 'in bytes, as it was mapped' },
]);

/** A 64-bit number; -1 when it is too large for any that we take. */
export function joined(low: number, high: number): number {
  return high < 2 ** 21 ? high * 2 ** 32 + low : -1;
}
