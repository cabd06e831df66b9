// What a client asks a vfio-user server before it uses the function: the version, the device, its
// regions with what of them can be mapped, and its interrupts.
//
// Invariant: every number of a reply is checked before it is used. One that cannot be ends the
// connection (PROTOCOL_ERROR); descriptors that came along are closed whatever happens.

import { errnoCode, PenstockError } from '../errors.js';
import { native } from '../native.js';
import type { BarShare, BarWindow } from './bar.js';
import { DATA_BYTES_MAX, FDS_MAX, type VfioUserClient } from './vfio-user-client.js';
import {
  Command,
  DeviceFlag,
  DeviceInfo,
  IrqIndex,
  IrqInfo,
  joined,
  RegionFlag,
  RegionIndex,
  RegionInfo,
  SPARSE_CAP_ID,
  SparseArea,
  SparseCap,
  Version,
} from './vfio-user-protocol.js';

const PAGE_BYTES = 4096;
const REGION_BYTES_MAX = 2 ** 40;
const AREAS_MAX = 64;
const CAPABILITIES_MAX = 16;
const VECTORS_MAX = 2048;
const EBUSY = 16;
/** Room for a region's capabilities in the first attempt: enough for all that we know of. */
const REGION_REPLY_BYTES = 4096;

/** Of one message; a server that says nothing takes one. */
export interface ServerLimits {
  readonly fdsMax: number;
}

export function negotiate(client: VfioUserClient): ServerLimits {
  const capabilities = { max_msg_fds: FDS_MAX, max_data_xfer_size: DATA_BYTES_MAX };
  const json = new TextEncoder().encode(`${JSON.stringify({ capabilities })}\0`);
  client.body[0] = Version.major | (Version.minor << 16);
  client.bodyBytes.set(json, 4);
  const got = askVersion(client, 4 + json.length);
  if (got === -EBUSY) throw busy(client.address);
  if (got < 0) throw unsupported(client.address, `it refused it with errno ${-got}`);
  if (got < 4) client.confuse('a version of 4 bytes or more', `${got} bytes`);
  const major = client.reply[0]! & 0xffff;
  const minor = client.reply[0]! >>> 16;
  if (major !== Version.major || minor > Version.minor) {
    throw unsupported(client.address, `it speaks ${major}.${minor}`);
  }
  return readLimits(client, client.replyBytes.subarray(4, got));
}

function askVersion(client: VfioUserClient, bytes: number): number {
  try {
    return client.request(Command.version, bytes);
  } catch (error) {
    if (!(error instanceof PenstockError)) throw error;
    // A server that serves somebody else leaves the connection, and what was sent, where it is.
    if (error.code === 'TIMED_OUT' && client.unread > 0) throw busy(client.address, error);
    if (error.code !== 'DEVICE_GONE') throw error;
    throw unsupported(client.address, 'it closed the connection', error);
  }
}

function readLimits(client: VfioUserClient, data: Uint8Array): ServerLimits {
  const end = data.indexOf(0);
  const text = new TextDecoder().decode(end < 0 ? data : data.subarray(0, end));
  if (text === '') return { fdsMax: 1 };
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    client.confuse('JSON with its capabilities', JSON.stringify(text.slice(0, 60)));
  }
  const { capabilities } = (parsed ?? {}) as { capabilities?: Record<string, unknown> | null };
  const fdsMax: unknown = capabilities?.['max_msg_fds'] ?? 1;
  if (!Number.isInteger(fdsMax) || (fdsMax as number) < 0) {
    client.confuse('max_msg_fds, a whole number', JSON.stringify(fdsMax).slice(0, 60));
  }
  if (fdsMax === 0) throw unsupported(client.address, 'it takes no descriptors: it cannot do DMA');
  return { fdsMax: Math.min(fdsMax as number, FDS_MAX) };
}

export interface ServedDevice {
  readonly hasReset: boolean;
  readonly irqKinds: number;
}

export function readDevice(client: VfioUserClient): ServedDevice {
  client.body.fill(0, 0, DeviceInfo.words);
  client.body[DeviceInfo.argsz] = DeviceInfo.words * 4;
  const { reply } = ask(client, Command.getInfo, DeviceInfo.words * 4, DeviceInfo.words * 4);
  const flags = reply[DeviceInfo.flags]!;
  const regions = reply[DeviceInfo.regions]!;
  if ((flags & DeviceFlag.pci) === 0) {
    client.confuse('a PCI function', `flags 0x${flags.toString(16)}`);
  }
  if (regions <= RegionIndex.config) client.confuse('8 regions or more', `${regions}`);
  return { hasReset: (flags & DeviceFlag.reset) !== 0, irqKinds: reply[DeviceInfo.irqs]! };
}

/** Bytes of config space: 256, or 4096 with the extended part. */
export function readConfigBytes(client: VfioUserClient): number {
  const info = readRegion(client, RegionIndex.config);
  for (const fd of client.takeFds()) native.fileClose(fd);
  if (info.bytes < 256) client.confuse('256 bytes of config space or more', `${info.bytes}`);
  return info.bytes < 4096 ? 256 : 4096;
}

/**
 * A BAR, what can be of it mapped; null where there is none. The regions mapped are added to
 * `mapped` one by one, for the caller to close.
 */
export function readBar(client: VfioUserClient, index: number, mapped: number[]): BarShare | null {
  const info = readRegion(client, index);
  const fds = client.takeFds();
  try {
    if (info.bytes === 0) return null;
    const windows: BarWindow[] = [];
    info.areas.forEach(([offset, bytes], place) => {
      // One descriptor serves all areas, or each has its own.
      const fd = fds.length === info.areas.length ? fds[place] : fds[0];
      const region = fd === undefined ? 0 : mapArea(fd, info, offset, bytes);
      if (region === 0) return;
      mapped.push(region);
      windows.push({ offset, bytes, region });
    });
    return { index, bytes: info.bytes, windows };
  } finally {
    for (const fd of fds) native.fileClose(fd);
  }
}

interface ServedRegion {
  readonly bytes: number;
  readonly writable: boolean;
  /** In the file of the descriptor. */
  readonly fileOffset: number;
  /** What can be mapped: [offset in the region, bytes]. */
  readonly areas: readonly (readonly [number, number])[];
}

/** Its descriptors are left with the client. */
function readRegion(client: VfioUserClient, index: number): ServedRegion {
  let room = REGION_REPLY_BYTES;
  for (;;) {
    client.body.fill(0, 0, RegionInfo.words);
    client.body[RegionInfo.argsz] = room;
    client.body[RegionInfo.index] = index;
    const least = RegionInfo.words * 4;
    const { reply, got } = ask(client, Command.getRegionInfo, least, least, true);
    const wanted = reply[RegionInfo.argsz]!;
    if (wanted <= room) return parseRegion(client, index, got);
    for (const fd of client.takeFds()) native.fileClose(fd);
    if (wanted > DATA_BYTES_MAX || room > REGION_REPLY_BYTES) {
      client.confuse(`at most ${DATA_BYTES_MAX} bytes about region ${index}`, `${wanted}`);
    }
    room = wanted;
  }
}

function parseRegion(client: VfioUserClient, index: number, got: number): ServedRegion {
  const { reply } = client;
  const flags = reply[RegionInfo.flags]!;
  const bytes = joined(reply[RegionInfo.sizeLo]!, reply[RegionInfo.sizeHi]!);
  const fileOffset = joined(reply[RegionInfo.offsetLo]!, reply[RegionInfo.offsetHi]!);
  if (reply[RegionInfo.index] !== index) {
    client.confuse(`region ${index}`, `region ${reply[RegionInfo.index]}`);
  }
  if (bytes < 0 || bytes > REGION_BYTES_MAX || fileOffset < 0) {
    client.confuse(`at most 1 TiB in region ${index}`, `${bytes} bytes at ${fileOffset}`);
  }
  const writable = (flags & RegionFlag.write) !== 0;
  const readable = (flags & RegionFlag.read) !== 0;
  if (bytes === 0 || !readable || (flags & RegionFlag.mmap) === 0) {
    return { bytes, writable, fileOffset, areas: [] };
  }
  const sparse = (flags & RegionFlag.caps) === 0 ? null : sparseAreas(client, bytes, got);
  return { bytes, writable, fileOffset, areas: sparse ?? [[0, bytes]] };
}

/** The areas of the sparse capability; null without one. */
function sparseAreas(
  client: VfioUserClient,
  bytes: number,
  got: number,
): [number, number][] | null {
  const { reply } = client;
  let offset = reply[RegionInfo.capOffset]!;
  for (let i = 0; i < CAPABILITIES_MAX && offset !== 0; i++) {
    const at = offset / 4;
    if (offset < RegionInfo.words * 4 || !Number.isInteger(at) || offset + 8 > got) {
      client.confuse(`a capability in the ${got} bytes of the reply`, `one at ${offset}`);
    }
    if ((reply[at + SparseCap.id]! & 0xffff) !== SPARSE_CAP_ID) {
      offset = reply[at + SparseCap.next]!;
      continue;
    }
    const count = offset + 16 <= got ? reply[at + SparseCap.areas]! : AREAS_MAX + 1;
    const first = at + SparseCap.words;
    if (count > AREAS_MAX || (first + count * SparseArea.words) * 4 > got) {
      client.confuse(`at most ${AREAS_MAX} areas, in the reply`, `${count}`);
    }
    return Array.from({ length: count }, (_, k) =>
      sparseArea(client, first + k * SparseArea.words, bytes),
    );
  }
  return null;
}

function sparseArea(client: VfioUserClient, at: number, regionBytes: number): [number, number] {
  const { reply } = client;
  const offset = joined(reply[at + SparseArea.offsetLo]!, reply[at + SparseArea.offsetHi]!);
  const bytes = joined(reply[at + SparseArea.sizeLo]!, reply[at + SparseArea.sizeHi]!);
  if (offset < 0 || bytes < 0 || offset + bytes > regionBytes) {
    client.confuse(`an area in the ${regionBytes} bytes of its region`, `${bytes} at ${offset}`);
  }
  return [offset, bytes];
}

/** A native region, or 0: what cannot be mapped is trapped instead. */
function mapArea(fd: number, info: ServedRegion, offset: number, bytes: number): number {
  if (bytes === 0 || bytes % PAGE_BYTES !== 0 || offset % PAGE_BYTES !== 0) return 0;
  try {
    return native.regionMap(fd, info.fileOffset + offset, bytes, info.writable);
  } catch (error) {
    const odd = error instanceof RangeError; // for pages of this descriptor's size
    if (!odd && errnoCode(error) === '') throw error;
    return 0;
  }
}

/** The kind of interrupts to use, the best that there is, and how many vectors; null for none. */
export function readInterrupts(
  client: VfioUserClient,
  irqKinds: number,
): { kind: number; vectors: number } | null {
  for (const kind of [IrqIndex.msix, IrqIndex.msi, IrqIndex.intx]) {
    if (kind >= irqKinds) continue;
    client.body.fill(0, 0, IrqInfo.words);
    client.body[IrqInfo.argsz] = IrqInfo.words * 4;
    client.body[IrqInfo.index] = kind;
    const bytes = IrqInfo.words * 4;
    const { reply } = ask(client, Command.getIrqInfo, bytes, bytes);
    const vectors = reply[IrqInfo.count]!;
    if (reply[IrqInfo.index] !== kind || vectors > VECTORS_MAX) {
      const came = `${vectors} of kind ${reply[IrqInfo.index]}`;
      client.confuse(`at most ${VECTORS_MAX} vectors of kind ${kind}`, came);
    }
    if (vectors > 0 && (reply[IrqInfo.flags]! & 1) !== 0) return { kind, vectors };
  }
  return null;
}

/** A request that a server cannot refuse, and whose reply has `least` bytes or more. */
function ask(
  client: VfioUserClient,
  command: Command,
  bodyBytes: number,
  least: number,
  wantsFds = false,
): { reply: Uint32Array; got: number } {
  const got = client.request(command, bodyBytes, [], wantsFds);
  if (got < 0) client.confuse(`a reply to command ${command}`, `errno ${-got}`);
  if (got < least) client.confuse(`${least} bytes to command ${command}`, `${got}`);
  return { reply: client.reply, got };
}

function busy(address: string, cause?: unknown): PenstockError {
  return new PenstockError('BUSY', `${address}: the server serves somebody else`, {
    hint: 'it takes one client at a time: close the other, or wait until it ended',
    ...(cause === undefined ? {} : { cause }),
  });
}

function unsupported(address: string, why: string, cause?: unknown): PenstockError {
  const ours = `vfio-user ${Version.major}.${Version.minor}`;
  return new PenstockError(
    'VERSION_UNSUPPORTED',
    `${address}: the server does not take ${ours}: ${why}`,
    {
      hint: 'use a server of that major version; one that closes at once may serve somebody else',
      ...(cause === undefined ? {} : { cause }),
    },
  );
}
