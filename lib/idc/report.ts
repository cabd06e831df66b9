// What a domain tells of itself to any member that asks: its channels, what it has lent and holds,
// its memory, and what its services add (`Domain.reporters`). For `penstock idc ls` and `top`.
//
// Every domain answers on a port of its own accord. A question is a channel: the answer is its one
// message, a JSON text, and the channel ends. So nothing of it stays in the domain asked, and the
// process of a domain that has nothing else to do is not kept alive by those who watch it.

import { PenstockError } from '../errors.js';
import type { DmaBuffer } from '../memory/index.js';
import { Channel } from './channel.js';
import type { Domain } from './domain.js';
import { Half } from './layout.js';
import type { Incoming, Link } from './link.js';
import { printable, REPORT_PORT } from './report-read.js';

/** Longer answers lose what services add, then channels. */
const BYTES_MAX = 2 ** 20;

export interface ChannelReport {
  /** Of this domain's end; no other has it meanwhile. */
  readonly id: number;
  readonly peer: string;
  readonly slot: number;
  readonly port: string;
  /** Records of each ring. */
  readonly size: number;
  /** Records so far; both count to 2^32 and go on from 0. */
  readonly sent: number;
  readonly received: number;
  /** Records sent that the other side has not taken. */
  readonly unread: number;
  /** Times that the other side was woken. */
  readonly wakes: number;
}

/** Loans of this domain's memory that another has. */
export interface LentReport {
  readonly consumer: string;
  readonly slot: number;
  readonly loans: number;
  readonly bytes: number;
  readonly oldest_ms: number;
}

/** Loans that this domain has of another's memory. */
export interface HeldReport {
  readonly owner: string;
  readonly slot: number;
  readonly loans: number;
}

export interface DomainReport {
  readonly version: 1;
  readonly name: string;
  readonly slot: number;
  readonly pid: number;
  readonly memory: {
    /** Bytes of own segments that others may map; buffers of them that are out. */
    readonly shared_bytes: number;
    readonly buffers: number;
    /** Bytes of others' segments that are mapped here. */
    readonly mapped_bytes: number;
  };
  readonly channels: readonly ChannelReport[];
  readonly lent: readonly LentReport[];
  readonly held: readonly HeldReport[];
  /** By name of the service. */
  readonly services: Readonly<Record<string, unknown>>;
}

export function makeReport(domain: Domain): DomainReport {
  const { lent, held } = domain.loans();
  const nameOf = (slot: number): string => domain.links.get(slot)?.peer.name ?? `domain ${slot}`;
  const links = [...domain.links.values()];
  return {
    version: 1,
    name: domain.name,
    slot: domain.slot,
    pid: process.pid,
    memory: {
      shared_bytes: domain.memory.segmentBytes,
      buffers: domain.memory.taken,
      mapped_bytes: links.reduce((sum, link) => sum + link.mappedBytes, 0),
    },
    channels: links.flatMap(channelsOf),
    lent: lent.map(({ consumer, holds, bytes, oldestMs }) => ({
      consumer: nameOf(consumer),
      slot: consumer,
      loans: holds,
      bytes,
      oldest_ms: oldestMs,
    })),
    held: held.map(({ owner, name, loans }) => ({ owner: name, slot: owner, loans })),
    services: servicesOf(domain),
  };
}

/** Answers one question. The channel is closed as soon as the answer is on it. */
export function sendReport(domain: Domain, link: Link, incoming: Incoming): Channel {
  const text = fitted(makeReport(domain));
  const made = incoming.accept();
  const channel = new Channel(domain, link, made.records, REPORT_PORT, '');
  // Once the domain has the channel in its book.
  setImmediate(() => {
    let body: DmaBuffer | null = null;
    try {
      if (channel.records.isClosed) return;
      body = bufferOf(domain, text);
      channel.trySend(body);
    } catch (error) {
      // It has gone, or there is no memory: it sees the end without an answer.
      if (!(error instanceof PenstockError)) throw error;
    } finally {
      if (body?.freed === false) body.free();
      channel.close();
    }
  });
  return channel;
}

function bufferOf(domain: Domain, text: string): DmaBuffer {
  const bytes = new TextEncoder().encode(text);
  const buffer = domain.alloc(bytes.length);
  buffer.u8.set(bytes);
  return buffer;
}

function fitted(report: DomainReport): string {
  for (const form of [report, { ...report, services: {} }]) {
    const text = JSON.stringify(form);
    if (text.length <= BYTES_MAX / 4) return text;
  }
  return JSON.stringify({ ...report, services: {}, channels: [] });
}

function channelsOf(link: Link): ChannelReport[] {
  const reports: ChannelReport[] = [];
  const { name, slot } = link.peer;
  for (const [records, port] of link.openChannels) {
    if (port === REPORT_PORT) continue;
    const { size, header, counters } = records;
    const id = header[Half.serial]!;
    reports.push({ id, peer: name, slot, port: printable(port), size, ...counters });
  }
  return reports;
}

/** What a service says; a service that fails says that. */
function servicesOf(domain: Domain): Record<string, unknown> {
  const services: Record<string, unknown> = {};
  for (const [name, reporter] of domain.reporters) {
    try {
      services[name] = reporter();
    } catch (error) {
      services[name] = { error: error instanceof Error ? error.message : String(error) };
    }
  }
  return services;
}
