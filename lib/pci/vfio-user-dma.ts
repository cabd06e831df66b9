// How a vfio-user server reaches memory: it maps the segment's descriptor (DMA_MAP).
//
// Invariants
// 1. Only `device` segments are handed out: the server gets them writable, and keeps what it mapped
//    until it lets go of it. Nothing else of the process is within its reach.
// 2. What the server reaches is the memfd, not the address: once a segment is closed, a server that
//    still writes to it reaches nobody's memory.

import { errnoCode, PenstockError } from '../errors.js';
import { native, type SegmentRecord } from '../native.js';
import type { DmaTransport } from './dma-space.js';
import type { VfioUserClient } from './vfio-user-client.js';
import { Command, DmaFlag, DmaMap, DmaUnmap } from './vfio-user-protocol.js';

const KIND_DEVICE = 2;
const EEXIST = 17;

export class ServerMemory implements DmaTransport {
  private readonly client: VfioUserClient;

  constructor(client: VfioUserClient) {
    this.client = client;
  }

  /** Errors: SEGMENT_PRIVATE, DMA_MAP_FAILED, DEVICE_GONE. */
  map(segment: SegmentRecord): boolean {
    const fd = handOut(segment);
    try {
      let got = this.send(segment, fd);
      if (got === -EEXIST) {
        // An environment that ended had begun to map it.
        this.unmap(segment.address, segment.bytes);
        got = this.send(segment, fd);
      }
      if (got < 0) throw refused(this.client.address, segment, -got);
      return true;
    } finally {
      native.fileClose(fd);
    }
  }

  unmap(address: number, bytes: number): boolean {
    if (this.client.gone) return true; // and with the connection all that was mapped
    const { body } = this.client;
    body.fill(0, 0, DmaUnmap.words);
    body[DmaUnmap.argsz] = DmaUnmap.words * 4;
    body[DmaUnmap.addressLo] = address % 2 ** 32;
    body[DmaUnmap.addressHi] = Math.floor(address / 2 ** 32);
    body[DmaUnmap.sizeLo] = bytes % 2 ** 32;
    body[DmaUnmap.sizeHi] = Math.floor(bytes / 2 ** 32);
    try {
      this.client.request(Command.dmaUnmap, DmaUnmap.words * 4);
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error;
    }
    // One that is refused was not mapped, or is left to a server that reaches nobody's memory.
    return true;
  }

  private send(segment: SegmentRecord, fd: number): number {
    const { body } = this.client;
    body.fill(0, 0, DmaMap.words);
    body[DmaMap.argsz] = DmaMap.words * 4;
    body[DmaMap.flags] = DmaFlag.read | DmaFlag.write;
    body[DmaMap.addressLo] = segment.address % 2 ** 32;
    body[DmaMap.addressHi] = Math.floor(segment.address / 2 ** 32);
    body[DmaMap.sizeLo] = segment.bytes % 2 ** 32;
    body[DmaMap.sizeHi] = Math.floor(segment.bytes / 2 ** 32);
    return this.client.request(Command.dmaMap, DmaMap.words * 4, [fd]);
  }
}

function handOut(segment: SegmentRecord): number {
  let cause: unknown;
  if (segment.kind === KIND_DEVICE) {
    try {
      return native.segmentFd(segment.id);
    } catch (error) {
      if (errnoCode(error) !== 'EPERM') throw error;
      cause = error;
    }
  }
  throw new PenstockError(
    'SEGMENT_PRIVATE',
    `the segment at 0x${segment.address.toString(16)} may not be given to a vfio-user server`,
    {
      hint: "its buffers must come from memory of that kind: new Memory({ kind: 'device' })",
      ...(cause === undefined ? {} : { cause }),
    },
  );
}

function refused(address: string, segment: SegmentRecord, errno: number): PenstockError {
  const what = `${segment.bytes / 2 ** 20} MiB at 0x${segment.address.toString(16)}`;
  return new PenstockError('DMA_MAP_FAILED', `${address} did not map ${what}: errno ${errno}`, {
    hint: 'a server maps a limited number of segments: use fewer, larger ones; its log says more',
  });
}
