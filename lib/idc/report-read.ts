// The other side of a report: asks a member, and reads what it answers, which may be anything.

import type { Domain } from './domain.js';
import type { Message } from './message.js';
import { misbehaved } from './transport.js';
import type { ChannelReport, DomainReport, HeldReport, LentReport } from './report.js';

export const REPORT_PORT = 'penstock.report';
const BYTES_MAX = 2 ** 20;
const ENTRIES_MAX = 4096;
const TEXT_MAX = 256;
/** How long a question stays open that its member does not answer: it may be stopped. */
const ASK_MS = 600_000;

/** One member's answers, asked for again and again; a member that is stopped is asked once. */
export class ReportReader {
  private readonly domain: Domain;
  private readonly asked = new Map<string, Promise<DomainReport>>();

  constructor(domain: Domain) {
    this.domain = domain;
  }

  /**
   * A member's report, or null when there is no answer in time: it is stopped or busy. Errors:
   * those of Domain.connect, PEER_GONE, PEER_MISBEHAVED.
   */
  async ask(member: string, timeoutMs: number): Promise<DomainReport | null> {
    let answer = this.asked.get(member);
    if (answer === undefined) {
      answer = askReport(this.domain, member).finally(() => this.asked.delete(member));
      answer.catch(() => {}); // whoever waits is told, and nobody else has to be
      this.asked.set(member, answer);
    }
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<null>((resolve) => {
      timer = setTimeout(() => resolve(null), timeoutMs);
    });
    try {
      return await Promise.race([answer, late]);
    } finally {
      clearTimeout(timer);
    }
  }
}

async function askReport(domain: Domain, member: string): Promise<DomainReport> {
  const channel = await domain.connect(member, REPORT_PORT, { size: 2, timeoutMs: ASK_MS });
  try {
    const message = await channel.receive();
    if (message === null) throw misbehaved('did not say what it reports');
    return readReport(message);
  } finally {
    channel.close();
  }
}

function readReport(message: Message): DomainReport {
  try {
    if (message.bytes > BYTES_MAX) throw misbehaved('reports more than anybody would');
    // Copied: what is decoded must not change meanwhile.
    const bytes = Uint8Array.from(message.u8 as unknown as Uint8Array);
    let value: unknown;
    try {
      value = JSON.parse(new TextDecoder().decode(bytes));
    } catch {
      throw misbehaved('reports what is no JSON');
    }
    return checkReport(value);
  } finally {
    message.release();
  }
}

/** A report with the fields that it should have, whatever a member has sent. */
export function checkReport(value: unknown): DomainReport {
  const report = object(value);
  const memory = object(report['memory']);
  return {
    version: 1,
    name: text(report['name']),
    slot: number(report['slot']),
    pid: number(report['pid']),
    memory: {
      shared_bytes: number(memory['shared_bytes']),
      buffers: number(memory['buffers']),
      mapped_bytes: number(memory['mapped_bytes']),
    },
    channels: list(report['channels']).map(channel),
    lent: list(report['lent']).map(lent),
    held: list(report['held']).map(held),
    services: object(report['services']),
  };
}

/** What a terminal shows as it is; at most 256 characters. */
export function printable(value: string): string {
  return value.slice(0, TEXT_MAX).replace(/[^\x20-\x7e]/g, '?');
}

function channel(value: Record<string, unknown>): ChannelReport {
  return {
    id: number(value['id']),
    peer: text(value['peer']),
    slot: number(value['slot']),
    port: text(value['port']),
    size: number(value['size']),
    sent: number(value['sent']),
    received: number(value['received']),
    unread: number(value['unread']),
    wakes: number(value['wakes']),
  };
}

function lent(value: Record<string, unknown>): LentReport {
  return {
    consumer: text(value['consumer']),
    slot: number(value['slot']),
    loans: number(value['loans']),
    bytes: number(value['bytes']),
    oldest_ms: number(value['oldest_ms']),
  };
}

function held(value: Record<string, unknown>): HeldReport {
  return {
    owner: text(value['owner']),
    slot: number(value['slot']),
    loans: number(value['loans']),
  };
}

function object(value: unknown): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return {};
  return value as Record<string, unknown>;
}

function list(value: unknown): Record<string, unknown>[] {
  return Array.isArray(value) ? value.slice(0, ENTRIES_MAX).map(object) : [];
}

function text(value: unknown): string {
  return typeof value === 'string' ? printable(value) : '';
}

function number(value: unknown): number {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0 ? value : 0;
}
