// The lists that Identify gives: namespaces (CNS 02h, 10h), controllers (12h, 13h), identifiers of
// a namespace (03h), command set combinations (1Ch). NVM Express Base 2.0, section 5.17.2.
//
// What a controller says can be anything: every parser ends after the page, whatever stands in it,
// and a caller that pages by the last entry it got makes progress.

import { hexText, littleEndian } from './text.js';

const PAGE_BYTES = 4096;
const NSID_MAX = 0xfffffffe;
const CONTROLLERS_MAX = 2047;

function words(page: Uint8Array): DataView {
  if (page.length < PAGE_BYTES) {
    throw new RangeError(`a list has ${PAGE_BYTES} bytes, ${page.length} given`);
  }
  return new DataView(page.buffer, page.byteOffset, PAGE_BYTES);
}

/**
 * The namespaces of one page, all above `after` and rising: the list ends at the first entry that
 * does not. A full page (1024) may have a successor: ask for it with the last entry.
 */
export function parseNamespaceList(page: Uint8Array, after = 0): number[] {
  const view = words(page);
  const nsids: number[] = [];
  let last = after;
  for (let offset = 0; offset < PAGE_BYTES; offset += 4) {
    const nsid = view.getUint32(offset, true);
    if (nsid <= last || nsid > NSID_MAX) break;
    nsids.push(nsid);
    last = nsid;
  }
  return nsids;
}

export const NAMESPACES_PER_PAGE = PAGE_BYTES / 4;

/** Controller identifiers of one page, rising; 2047 at most, whatever number it gives. */
export function parseControllerList(page: Uint8Array): number[] {
  const view = words(page);
  const count = Math.min(view.getUint16(0, true), CONTROLLERS_MAX);
  const controllers: number[] = [];
  let last = -1;
  for (let index = 1; index <= count; index++) {
    const cntlid = view.getUint16(index * 2, true);
    if (cntlid <= last) break;
    controllers.push(cntlid);
    last = cntlid;
  }
  return controllers;
}

export const enum Nidt {
  EUI64 = 1,
  NGUID = 2,
  UUID = 3,
  CSI = 4,
}

/** Identifiers as hex, '' where there is none; csi 0 (NVM) where the list does not say. */
export interface NamespaceIdentifiers {
  readonly eui64: string;
  readonly nguid: string;
  readonly uuid: string;
  readonly csi: number;
  readonly problems: readonly string[];
}

const IDENTIFIER_BYTES: Readonly<Record<number, readonly [string, number]>> = {
  [Nidt.EUI64]: ['eui64', 8],
  [Nidt.NGUID]: ['nguid', 16],
  [Nidt.UUID]: ['uuid', 16],
  [Nidt.CSI]: ['csi', 1],
};

/**
 * Namespace identification descriptors: type, length, two reserved bytes, identifier. The list ends
 * at a length of 0; a descriptor of a wrong length, or over the end, ends it, too, and is a
 * problem.
 */
export function parseNamespaceIdentifiers(page: Uint8Array): NamespaceIdentifiers {
  words(page);
  const found: Record<string, string> = {};
  const problems: string[] = [];
  for (let offset = 0; offset + 4 <= PAGE_BYTES;) {
    const type = page[offset]!;
    const bytes = page[offset + 1]!;
    if (bytes === 0) {
      if (type !== 0) problems.push(`descriptor of type ${type} without an identifier`);
      break;
    }
    const [name, wanted] = IDENTIFIER_BYTES[type] ?? ['', bytes];
    if (bytes !== wanted || offset + 4 + bytes > PAGE_BYTES) {
      problems.push(`descriptor of type ${type} with ${bytes} bytes at ${offset}`);
      break;
    }
    if (name in found) problems.push(`two identifiers of type ${type}`);
    else if (name !== '') found[name] = hexText(page.subarray(offset + 4, offset + 4 + bytes));
    offset += 4 + bytes;
  }
  const { eui64 = '', nguid = '', uuid = '', csi = '0' } = found;
  return { eui64, nguid, uuid, csi: Number.parseInt(csi, 16), problems };
}

/** Combinations of I/O command sets (CNS 1Ch): a bit per command set, by CSI; 512 of them. */
export function parseCommandSets(page: Uint8Array): bigint[] {
  words(page);
  return Array.from({ length: PAGE_BYTES / 8 }, (_, index) =>
    littleEndian(page.subarray(index * 8, index * 8 + 8)),
  );
}
