// The thread of VfioUserServer: one connection at a time, one request at a time.

import { parentPort, workerData } from 'node:worker_threads';
import { native } from '../../lib/native.js';
import { BAR0_BYTES, DEVICE_ID, FAULTS, Register, Word } from './vfio-user-server.js';
import type { Fault, ServerOptions } from './vfio-user-server.js';

const { options, words } = workerData as { options: ServerOptions; words: Int32Array };

const SECOND_US = 1_000_000;
const FOREVER_US = 3600 * SECOND_US;
const PAGE = 4096;
const CONFIG_REGION = 7;
const VECTORS = options.vectors ?? 20;
const TABLE_CAPABILITY = 0x40;
const EINVAL = 22;
const EBUSY = 16;

interface Message {
  id: number;
  command: number;
  flags: number;
  body: Uint8Array;
  fds: number[];
}

interface Reply {
  body?: Uint8Array;
  errno?: number;
  fds?: number[];
}

class Ended extends Error {}

/** The device's own memory: BAR 0's mapped pages and BAR 2. */
const memory = native.segmentCreate(2 ** 21, 4096, 2);
const memoryBytes = new Uint8Array(native.segmentBuffer(memory));
const registers = new Uint8Array(BAR0_BYTES);
const config = new Uint8Array(4096);
const eventfds = new Map<number, number>();
const dma = new Map<number, { bytes: number; segment: number; view: Uint8Array }>();
let socket = -1;

function u32(bytes: Uint8Array): Uint32Array {
  return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length >>> 2);
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

function words32(...values: number[]): Uint8Array {
  return new Uint8Array(Uint32Array.from(values).buffer);
}

function resetDevice(): void {
  registers.fill(0);
  view(registers).setUint32(Register.id, DEVICE_ID, true);
  // As after a reset, every vector is masked.
  for (let i = 0; i < VECTORS; i++) registers[Register.table + i * 16 + 12] = 1;
}

function makeConfig(): void {
  const at = view(config);
  at.setUint16(0x00, 0x1b36, true);
  at.setUint16(0x02, 0x0010, true);
  at.setUint16(0x04, options.command ?? 0, true);
  at.setUint16(0x06, 1 << 4, true);
  at.setUint32(0x08, (0x010802 << 8) | 2, true);
  at.setUint16(0x2c, 0x1af4, true);
  at.setUint16(0x2e, 0x1100, true);
  config[0x34] = TABLE_CAPABILITY;
  config[TABLE_CAPABILITY] = 0x11;
  at.setUint16(TABLE_CAPABILITY + 2, VECTORS - 1, true);
  at.setUint32(TABLE_CAPABILITY + 4, Register.table, true);
}

/** Blocks for a message; Ended when the client has gone. */
function receive(): Message {
  const fds: number[] = [];
  const header = new Uint8Array(16);
  receiveInto(header, fds);
  const [first = 0, bytes = 0, flags = 0] = u32(header);
  const body = new Uint8Array(bytes - 16);
  if (body.length > 0) receiveInto(body, fds);
  return { id: first & 0xffff, command: first >>> 16, flags, body, fds };
}

function receiveInto(bytes: Uint8Array, fds: number[]): void {
  const arrived = new Int32Array(65);
  let received = 0;
  try {
    received = native.streamReceive(socket, bytes, arrived, FOREVER_US);
  } catch {
    throw new Ended(); // reset by the client
  }
  for (let i = 1; i <= arrived[0]!; i++) fds.push(arrived[i]!);
  if (received < bytes.length) throw new Ended();
}

function send(bytes: Uint8Array, fds: readonly number[] = []): void {
  try {
    native.streamSend(socket, bytes, fds, SECOND_US);
  } catch {
    throw new Ended();
  }
}

function message(id: number, command: number, flags: number, errno: number, body: Uint8Array) {
  const bytes = new Uint8Array(16 + body.length);
  u32(bytes).set([(id | (command << 16)) >>> 0, bytes.length, flags, errno]);
  bytes.set(body, 16);
  return bytes;
}

const NOTHING = new Uint8Array(0);

function answer(request: Message): Reply {
  const at = view(request.body);
  switch (request.command) {
    case 1:
      return version();
    case 2:
      return mapDma(request);
    case 3:
      return unmapDma(request);
    case 4:
      return { body: words32(16, 3, 9, 5) };
    case 5:
      return regionInfo(at.getUint32(8, true), at.getUint32(0, true));
    case 7:
      return {
        body: words32(16, 1, at.getUint32(8, true), at.getUint32(8, true) === 2 ? VECTORS : 0),
      };
    case 8:
      return setIrqs(request);
    case 9:
    case 10:
      return access(request);
    case 13:
      words[Word.resets]!++;
      resetDevice();
      return {};
    default:
      return { errno: EINVAL };
  }
}

function version(): Reply {
  const [major, minor] = options.version ?? [0, 1];
  const capabilities: Record<string, unknown> = { max_data_xfer_size: 1048576 };
  if (options.fdsMax !== 0) capabilities['max_msg_fds'] = options.fdsMax ?? 8;
  const json = options.json ?? `${JSON.stringify({ capabilities })}\0`;
  const body = new Uint8Array(4 + json.length);
  view(body).setUint16(0, major, true);
  view(body).setUint16(2, minor, true);
  body.set(new TextEncoder().encode(json), 4);
  return { body };
}

function regionInfo(index: number, room: number): Reply {
  if (index === CONFIG_REGION) return { body: words32(32, 3, index, 0, 4096, 0, 0, 0) };
  if (index === 2) {
    // Mapped as a whole, a page into the memory.
    const fd = native.segmentFd(memory);
    return { body: words32(32, 7, index, 0, PAGE, 0, 4 * PAGE, 0), fds: [fd] };
  }
  if (index !== 0) return { body: words32(32, 0, index, 0, 0, 0, 0, 0) };
  if (options.trapAll === true) return { body: words32(32, 3, index, 0, BAR0_BYTES, 0, 0, 0) };
  // A capability of another kind comes first, to be passed over.
  const caps = [2 | (1 << 16), 48, 0, 0, 1 | (1 << 16), 0, 2, 0];
  const areas = [Register.mapped, 0, PAGE, 0, Register.mapped2, 0, PAGE, 0];
  const bytes = 32 + (caps.length + areas.length) * 4;
  if (room < bytes) return { body: words32(bytes, 7, index, 0, BAR0_BYTES, 0, 0, 0) };
  const fd = native.segmentFd(memory);
  const fds = options.fdPerArea === true ? [fd, native.segmentFd(memory)] : [fd];
  return { body: words32(bytes, 15, index, 32, BAR0_BYTES, 0, 0, 0, ...caps, ...areas), fds };
}

function mapDma(request: Message): Reply {
  words[Word.dmaMaps]!++;
  const at = view(request.body);
  const address = Number(at.getBigUint64(16, true));
  const bytes = Number(at.getBigUint64(24, true));
  const fd = request.fds[0];
  if (fd === undefined || request.body.length !== 32 || at.getUint32(4, true) !== 3) {
    return { errno: EINVAL };
  }
  if (dma.has(address)) return { errno: 17 };
  const segment = native.segmentImport(fd, Number(at.getBigUint64(8, true)), bytes, true);
  dma.set(address, { bytes, segment, view: new Uint8Array(native.segmentBuffer(segment)) });
  return {};
}

function unmapDma(request: Message): Reply {
  words[Word.dmaUnmaps]!++;
  const address = Number(view(request.body).getBigUint64(8, true));
  const known = dma.get(address);
  if (known === undefined) return { errno: 2 };
  native.segmentClose(known.segment);
  dma.delete(address);
  return { body: request.body };
}

function setIrqs(request: Message): Reply {
  words[Word.irqSets]!++;
  const [, flags = 0, index = 0, start = 0, count = 0] = u32(request.body);
  if (index !== 2 || start + count > VECTORS) return { errno: EINVAL };
  if ((flags & 4) === 0) {
    for (const fd of eventfds.values()) native.fileClose(fd);
    eventfds.clear();
    return {};
  }
  if (request.fds.length !== count || count > (options.fdsMax ?? 8)) return { errno: EINVAL };
  request.fds.splice(0).forEach((fd, i) => eventfds.set(start + i, fd));
  return {};
}

function access(request: Message): Reply {
  const at = view(request.body);
  const offset = Number(at.getBigUint64(0, true));
  const region = at.getUint32(8, true);
  const count = at.getUint32(12, true);
  const space = region === CONFIG_REGION ? config : region === 0 ? registers : null;
  if (space === null || offset + count > space.length) return { errno: EINVAL };
  const head = request.body.slice(0, 16);
  if (request.command === 10) {
    const data = request.body.subarray(16);
    if (data.length !== count) return { errno: EINVAL };
    space.set(data, offset);
    if (region === 0 && count === 4) stored(offset, view(space).getUint32(offset, true));
    return { body: head };
  }
  if (region === 0 && offset === Register.dma) u32(registers)[Register.dma / 4] = loadDma();
  const body = new Uint8Array(16 + count);
  body.set(head);
  body.set(space.subarray(offset, offset + count), 16);
  return { body };
}

function stored(offset: number, value: number): void {
  if (offset === Register.interrupt) {
    const fd = eventfds.get(value);
    const masked = registers[Register.table + value * 16 + 12] !== 0;
    const enabled = (config[TABLE_CAPABILITY + 3]! & 0x80) !== 0;
    if (fd !== undefined && enabled && !masked) native.eventfdSignal(fd);
  }
  if (offset === Register.dma) reachDma()?.fill(value);
}

function loadDma(): number {
  const bytes = reachDma();
  return bytes === null ? 0xffffffff : view(bytes).getUint32(0, true);
}

/** The memory that the DMA registers name, if the bus master bit allows it. */
function reachDma(): Uint8Array | null {
  const at = view(registers);
  const address = Number(at.getBigUint64(Register.dmaLo, true));
  const bytes = at.getUint32(Register.dmaBytes, true);
  if ((config[4]! & 4) === 0) return null;
  for (const [start, known] of dma) {
    if (address < start || address + bytes > start + known.bytes) continue;
    return known.view.subarray(address - start, address - start + bytes);
  }
  return null;
}

/** The fault that is due at this request. */
function dueFault(request: Message): Fault {
  const fault = FAULTS[Atomics.load(words, Word.fault)] ?? 'none';
  if (fault === 'none' || words[Word.command] !== request.command) return 'none';
  if (words[Word.skip]! > 0) {
    words[Word.skip]!--;
    return 'none';
  }
  Atomics.store(words, Word.fault, 0);
  return fault;
}

function serve(request: Message): void {
  words[Word.requests]!++;
  if ((request.flags & 0xf) === 1) {
    if ((request.flags & 0x20) !== 0) words[Word.refusals]!++;
    return;
  }
  const fault = dueFault(request);
  const reply = fault.startsWith('refuse') ? { errno: 0 } : answer(request);
  const { id, command } = request;
  const body = reply.errno === undefined ? (reply.body ?? NOTHING) : NOTHING;
  if ((request.flags & 0x10) === 0) {
    const flags = reply.errno === undefined ? 1 : 0x21;
    const good = message(id, command, flags, reply.errno ?? 0, body);
    misbehave(fault, request, good, reply.fds ?? []);
  }
  for (const fd of [...(reply.fds ?? []), ...request.fds]) native.fileClose(fd);
}

function misbehave(fault: Fault, request: Message, good: Uint8Array, fds: number[]): void {
  const { id, command } = request;
  const head = u32(good.slice(0, 16));
  switch (fault) {
    case 'silence':
      return;
    case 'close':
      throw new Ended();
    case 'die':
      process.exit(0);
    case 'wrong id':
      head[0] = ((id + 1) & 0xffff) | (command << 16);
      return send(new Uint8Array(head.buffer));
    case 'wrong command':
      head[0] = id | ((command + 1) << 16);
      return send(new Uint8Array(head.buffer));
    case 'cut short':
      send(good.subarray(0, Math.max(1, good.length - 3)));
      throw new Ended();
    case 'huge':
      head[1] = 0x80000000;
      return send(new Uint8Array(head.buffer));
    case 'tiny':
      head[1] = 4;
      return send(new Uint8Array(head.buffer));
    case 'empty':
      return send(message(id, command, 1, 0, NOTHING));
    case 'refuse':
      return send(message(id, command, 0x21, EINVAL, NOTHING));
    case 'refuse without errno':
      return send(message(id, command, 0x21, 0, NOTHING));
    case 'refuse as busy':
      return send(message(id, command, 0x21, EBUSY, NOTHING));
    case 'ask first':
      send(message(7, 11, 0, 0, words32(0, 1, 4096, 0)));
      send(message(8, 12, 0, 0, new Uint8Array(16 + 2000)));
      return send(good, fds);
    case 'flood':
      for (;;) send(message(9, 11, 0x10, 0, words32(0, 1, 4096, 0)));
    case 'descriptors':
      return send(good, [...fds, socket, socket]);
    case 'too many descriptors':
      head[1] = 24;
      send(new Uint8Array(head.buffer), new Array<number>(60).fill(socket));
      return send(new Uint8Array(8), new Array<number>(60).fill(socket));
    case 'late':
      Atomics.wait(words, Word.fault, 0, 1000);
      return send(good, fds);
    case 'reply twice':
      send(good, fds);
      return send(good);
    case 'twist':
      u32(good)[4 + words[Word.place]!] = words[Word.value]!;
      return send(good, fds);
    default:
      return send(good, fds);
  }
}

/** The socket last: once the client sees its end, all the rest is given back. */
function letGo(): void {
  for (const { segment } of dma.values()) native.segmentClose(segment);
  for (const fd of eventfds.values()) native.fileClose(fd);
  dma.clear();
  eventfds.clear();
  Atomics.add(words, Word.ends, 1);
  native.fileClose(socket);
}

resetDevice();
makeConfig();
memoryBytes.fill(0);
const listener = native.streamListen(options.path, 0o600);
parentPort!.postMessage('listens');
for (;;) {
  native.park(Int32Array.of(listener), -1);
  socket = native.unixAccept(listener);
  if (socket < 0) continue;
  Atomics.add(words, Word.connections, 1);
  try {
    for (;;) serve(receive());
  } catch (error) {
    if (!(error instanceof Ended)) throw error;
  } finally {
    letGo();
  }
}
