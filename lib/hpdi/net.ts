// The network side of HPDI: what a network device is to its users, and how the words of the same
// records carry packets. Operations are SEND and RECEIVE; the queue is the one of every device.
//
// SEND      blocks: bytes of the packet · aux: NetSend bits | VLAN tag << 16
//           lbaLo: checksumStart | checksumOffset << 16 · lbaHi: segmentBytes | headerBytes << 16
//           address: the packet, or with SG the list of its parts
// RECEIVE   blocks: bytes of the buffer · address: the buffer, which is the device's until then
//           resultLo: bytes received | place of the first one in the buffer << 20
//           resultHi: NetReceive bits | VLAN tag << 16
//
// Invariants: a packet that needs no offload has aux, lbaLo and lbaHi 0; a device completes a SEND
// that asks for an offload it does not have with UNSUPPORTED, and never sends it wrong; a packet
// that fills more than one receive buffer completes them in order, all but the last with MORE.

import type { DmaBuffer, Memory } from '../memory/index.js';
import type { Backend, DeviceHandle, QueueOptions } from './driver.js';
import type { Queue } from './queue.js';
import type { Explanation } from './status.js';

/** What a SEND asks of the device: bits 0–15 of `aux`. */
export const enum NetSend {
  /** Sum from checksumStart to the end of the packet, stored at checksumStart + checksumOffset. */
  CHECKSUM = 1 << 0,
  /** Cut into TCP segments of segmentBytes behind copies of the header (TSO), over IPv4. */
  TCP4 = 1 << 1,
  /** The same over IPv6. */
  TCP6 = 1 << 2,
  /** Cut into UDP datagrams of segmentBytes (USO). */
  UDP = 1 << 3,
  /** Insert the VLAN tag of bits 16–31. */
  VLAN = 1 << 4,
}

/** What a RECEIVE reports: bits 0–15 of `resultHi`. */
export const enum NetReceive {
  /** The device found the transport checksum right. */
  CHECKSUM_GOOD = 1 << 0,
  /** The checksum is not filled in: the packet never left this machine. */
  CHECKSUM_PARTIAL = 1 << 1,
  /** Several packets of one flow, joined by the device (LRO). */
  JOINED = 1 << 2,
  /** A VLAN tag was taken out; it stands in bits 16–31. */
  VLAN = 1 << 3,
  /** The packet goes on in the buffer that completes next. */
  MORE = 1 << 4,
  /** The buffer was too small, and the rest of the packet is lost. */
  TRUNCATED = 1 << 5,
}

export const SEND_OFFLOADS = Object.freeze({ CHECKSUM: 1, TCP4: 2, TCP6: 4, UDP: 8, VLAN: 16 });

export const RECEIVE_FLAGS = Object.freeze({
  CHECKSUM_GOOD: 1,
  CHECKSUM_PARTIAL: 2,
  JOINED: 4,
  VLAN: 8,
  MORE: 16,
  TRUNCATED: 32,
});

/** Facts of a network device. */
export interface NetInfo {
  readonly mac: string;
  readonly mtu: number;
  /** Bytes per second; 0 when unknown. */
  readonly linkBytesPerSecond: number;
  readonly linkUp: boolean;
  /** SEND_OFFLOADS bits that the device does. */
  readonly sendOffloads: number;
  /** RECEIVE_FLAGS bits that the device may report. */
  readonly receiveFlags: number;
  /** Entries of an SG list that one SEND may have; 0: no SG. */
  readonly maxSegments: number;
  /** Alignment in bytes of a buffer's address. */
  readonly addressAlign: number;
  /** Smallest receive buffer in bytes that the device takes. */
  readonly receiveBytesMin: number;
  /** Pairs of a receive and a send queue that may be open. */
  readonly queuePairs: number;
  /** For people: model, address, transport. */
  readonly description: Readonly<Record<string, string | number | boolean>>;
}

export interface NetQueueOptions extends Pick<QueueOptions, 'depth'> {
  /** Which pair of the device's queues, below info.queuePairs (default: the first free one). */
  readonly pair?: number;
}

/** What a packet needs of the device; all of it 0 or left out for a plain one. */
export interface SendOptions {
  /** SEND_OFFLOADS bits. */
  readonly offloads?: number;
  /** Bytes of `buf` that are the packet (default: all). */
  readonly bytes?: number;
  readonly checksumStart?: number;
  readonly checksumOffset?: number;
  readonly segmentBytes?: number;
  readonly headerBytes?: number;
  readonly vlan?: number;
}

/** A received packet: `bytes` of the posted buffer from `offset` on. */
export interface Packet {
  readonly offset: number;
  readonly bytes: number;
  /** RECEIVE_FLAGS bits. */
  readonly flags: number;
  readonly vlan: number;
}

/** An open network device; beside BlockDevice, with the same queues and the same ways. */
export interface NetDevice extends AsyncDisposable {
  readonly uri: string;
  readonly info: NetInfo;
  /** Where buffers for this device come from. */
  readonly memory: Memory;
  /**
   * Calls `listener` with the new facts when the link or the address changes; the function that it
   * gives ends that.
   */
  onChange(listener: (info: NetInfo) => void): () => void;
  /** Resolves when the device no longer needs the buffer; the packet may still be on its way. */
  send(buf: DmaBuffer, options?: SendOptions): Promise<void>;
  /** Posts the buffer and resolves with the packet that came into it. */
  receive(buf: DmaBuffer): Promise<Packet>;
  /** A queue of its own for the calling thread: SEND and RECEIVE records on one pair. */
  queue(options: NetQueueOptions): Queue;
  handle(): DeviceHandle<NetInfo>;
  explain(status: number): Explanation;
  close(): Promise<void>;
}

/** An open network device as its driver sees it. */
export type NetBackend = Backend<NetInfo, NetQueueOptions>;

/** The packet that a RECEIVE's result words tell of. */
export function decodePacket(resultLo: number, resultHi: number): Packet {
  return {
    bytes: resultLo & 0xf_ffff,
    offset: resultLo >>> 20,
    flags: resultHi & 0xffff,
    vlan: resultHi >>> 16,
  };
}
