// The pool's format on its device as constants (docs/format.md). Word indices are of 32-bit words;
// a page has 1024 of them.

/** A page, and a block of data. */
export const enum Page {
  bytes = 4096,
  words = 1024,
  /** Of a word's index in an array of pages. */
  shift = 10,
}

export const FORMAT_VERSION = 1;

/** Incompatible features: bits of the superblock's word. */
export const enum Feature {
  dataChecksum = 1,
}

export const FEATURES_KNOWN = Feature.dataChecksum;

/** Features without which a pool can be read, and not written. */
export const READ_FEATURES_KNOWN = 0;

/** Magic words: four ASCII characters, the first in the lowest byte. */
export const enum Magic {
  superblock = 0x4b545350,
  root = 0x54525350,
  summary = 0x4d535350,
  count = 0x43525350,
  fingerprint = 0x50465350,
  node = 0x444e5350,
  catalogue = 0x54435350,
  entry = 0x454a5350,
  tier = 0x524c5350,
  tierTable = 0x544c5350,
}

/** Header of every page. */
export const enum Head {
  magic = 0,
  crc = 1,
  pbnLo = 2,
  pbnHi = 3,
  seqLo = 4,
  seqHi = 5,
  checkpoint = 6,
  own = 7,
  words = 8,
}

/** Places on the device, in pages. */
export const enum Place {
  superblockA = 0,
  superblockB = 1,
  roots = 16,
}

/** Groups, extents and what they hold. */
export const enum Group {
  pages = 1024,
  shift = 10,
  extents = 4,
  extentPages = 256,
  extentShift = 8,
  /** Pages at the start of an extent that are not blocks. */
  metaPages = 3,
  /** Blocks of an extent. */
  blocks = 253,
  /** Blocks of a group. */
  counts = 1012,
  /** Page of an extent with a slot of the count page (extents 0, 1) or of a summary (2, 3). */
  sparePage = 2,
}

export const enum Span {
  groups = 256,
  shift = 8,
  /** Spans of a root page. */
  perRoot = 1016,
  /** Words of a group in a summary page. */
  groupWords = 2,
}

/** Word of a span in a root page. */
export const enum SpanWord {
  slot = 1,
  emptyMask = 0x7ff,
}

export const enum SpanShift {
  empty = 1,
  free = 12,
}

/** Second word of a group in a summary page: bits of extent 0. */
export const enum GroupShift {
  count = 0,
  fingerprint = 1,
  nodes = 8,
}

export const enum Node {
  /** High bits of entries, a byte each, from this word on. */
  high = 520,
  entries = 512,
  shift = 9,
}

export const enum Volume {
  state = 0,
  level = 1,
  rootLo = 2,
  rootHi = 3,
  bytesLo = 4,
  bytesHi = 5,
  madeLo = 6,
  madeHi = 7,
  origin = 8,
  serial = 9,
  mappedLo = 10,
  mappedHi = 11,
  reservedLo = 12,
  reservedHi = 13,
  name = 16,
  nameBytes = 128,
  /** A volume begins every so many words. */
  words = 64,
  perPage = 15,
}

export const enum VolumeState {
  none = 0,
  volume = 1,
  snapshot = 2,
  deleting = 3,
}

export const enum Super {
  uuid = 8,
  compatible = 12,
  incompatible = 13,
  readCompatible = 14,
  epoch = 15,
  seqLo = 16,
  seqHi = 17,
  journalAt = 18,
  clean = 19,
  pagesLo = 20,
  pagesHi = 21,
  roots = 22,
  journalPage = 23,
  journalPages = 24,
  firstGroup = 25,
  highWater = 26,
  thn = 27,
  llrrmThreshold = 28,
  dataChecksum = 29,
  sampling = 30,
  catalogueLevel = 31,
  catalogueLo = 32,
  catalogueHi = 33,
  volumes = 34,
  nextSerial = 35,
  llrrmUuid = 36,
  llrrmStamp = 40,
  blockSize = 41,
  llrrmPolicy = 42,
  indexPages = 43,
  rootSlots = 64,
  llrrmUri = 128,
  llrrmUriBytes = 512,
}

/** Words of the low-latency device's first page, and of its table. */
export const enum Tier {
  pool = 8,
  uuid = 12,
  stamp = 16,
  slots = 17,
  /** Slots of a table page, and words of each: pbn (a pair), checksum. */
  perPage = 254,
  entryWords = 4,
}

/** Words of the bits that say in which slot root pages are. */
export const ROOT_SLOT_WORDS = 64;

export const enum Entry {
  magic = 0,
  crc = 1,
  seqLo = 2,
  seqHi = 3,
  epoch = 4,
  kind = 5,
  durableBack = 6,
  records = 7,
  bytes = 8,
  words = 16,
}

/** Pages of the longest entry. */
export const ENTRY_PAGES = 16;

export const enum EntryKind {
  records = 1,
  wrap = 2,
}

/** A record of an entry. */
export const enum Rec {
  kind = 0,
  volume = 1,
  lbnLo = 2,
  lbnHi = 3,
  pbnLo = 4,
  pbnHi = 5,
  serial = 6,
  /** Words before the fingerprints. */
  words = 7,
}

export const enum RecKind {
  write = 1,
  unmap = 2,
}

export const enum Fingerprint {
  words = 4,
}

/** Blocks of a set, and of a write record. */
export const enum SetMax {
  blocks = 256,
}

/** A pbn is below this. */
export const PBN_END = 2 ** 36;
