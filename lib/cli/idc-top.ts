// `penstock idc top SOCKET`: what goes over the channels of a hub's members now, once a second.

import type { Command } from 'commander';
import { setTimeout as sleep } from 'node:timers/promises';
import { PenstockError } from '../errors.js';
import { listMembers, type MemberInfo } from '../idc/index.js';
import { formatSize, parseDuration } from '../units.js';
import { Members, type AskedMember } from './idc-members.js';
import { catchInterrupts } from './interrupts.js';
import { Exit, printText, table } from './output.js';
import type { Finish } from './program.js';

const INTERVAL_SECONDS_MIN = 0.1;
const INTERVAL_SECONDS_MAX = 3600;
const TWO32 = 2 ** 32;

/** What one member sent on one channel. */
export interface ChannelRate {
  readonly from: string;
  readonly to: string;
  readonly port: string;
  readonly records_per_s: number;
  readonly wakes_per_s: number;
  /** Sent and not taken yet. */
  readonly unread: number;
}

export interface MemberLoad {
  readonly name: string;
  readonly slot: number;
  readonly state: string;
  readonly sent_per_s: number;
  readonly received_per_s: number;
  readonly lent: number;
  readonly held: number;
  readonly shared_bytes: number;
  readonly services: Readonly<Record<string, unknown>>;
}

export interface TopSample {
  readonly seconds: number;
  readonly members: readonly MemberLoad[];
  readonly channels: readonly ChannelRate[];
}

interface Flags {
  json?: boolean;
  once?: boolean;
  interval?: string;
}

interface Seen {
  readonly atMs: number;
  readonly members: readonly AskedMember[];
}

export function configureTop(command: Command, finish: Finish): void {
  command
    .description('records, wakes and loans of the members of a hub, until SIGINT')
    .argument('<socket>', "the hub's socket")
    .option('--once', 'one sample, then end')
    .option('--interval <duration>', 'time between samples (default: 1)')
    .addHelpText('after', '\nWith --json each sample is a line.')
    .action(async (socket: string, _: object, self: Command) => {
      await runTop(socket, self.optsWithGlobals());
      finish(Exit.OK);
    });
}

async function runTop(socket: string, flags: Flags): Promise<void> {
  const seconds = parseInterval(flags.interval ?? '1');
  const interrupts = catchInterrupts();
  const { signal } = interrupts;
  try {
    const listed = await listMembers(socket);
    const members = await Members.join(socket, 'top');
    try {
      await members.linked(listed);
      let before = await look(members, listed);
      do {
        await sleep(seconds * 1000, undefined, { signal });
        const now = await look(members, before.members);
        print(socket, sampleOf(before, now), flags);
        before = now;
      } while (flags.once !== true && !signal.aborted);
    } finally {
      members.close();
    }
  } catch (error) {
    // Asked to end: that is how it ends.
    if (!signal.aborted) throw error;
  } finally {
    interrupts.release();
  }
}

/** The hub may be gone for a while; members are still there. */
async function look(members: Members, known: readonly MemberInfo[]): Promise<Seen> {
  let listed = known;
  try {
    listed = await members.domain.members();
  } catch (error) {
    if (!(error instanceof PenstockError)) throw error;
  }
  const there = listed.filter(({ state }) => state !== 'leaving');
  return { members: await members.ask(there), atMs: performance.now() };
}

/** What happened between two looks. */
export function sampleOf(before: Seen, now: Seen): TopSample {
  const seconds = (now.atMs - before.atMs) / 1000;
  const channels: ChannelRate[] = [];
  const members = now.members.map((member): MemberLoad => {
    const { report, name, slot, generation } = member;
    const old = before.members.find((other) => {
      return other.slot === slot && other.generation === generation;
    })?.report;
    const earlier = new Map(old?.channels.map((channel) => [channel.id, channel]));
    let sent = 0;
    let received = 0;
    for (const channel of report?.channels ?? []) {
      const was = earlier.get(channel.id);
      const rate = (field: 'sent' | 'received' | 'wakes'): number => {
        return was === undefined ? 0 : ((channel[field] - was[field] + TWO32) % TWO32) / seconds;
      };
      sent += rate('sent');
      received += rate('received');
      channels.push({
        from: name,
        to: channel.peer,
        port: channel.port,
        records_per_s: Math.round(rate('sent')),
        wakes_per_s: Math.round(rate('wakes')),
        unread: channel.unread,
      });
    }
    return {
      name,
      slot,
      state: member.state === 'member' && report === null ? member.answer : member.state,
      sent_per_s: Math.round(sent),
      received_per_s: Math.round(received),
      lent: report?.lent.reduce((sum, { loans }) => sum + loans, 0) ?? 0,
      held: report?.held.reduce((sum, { loans }) => sum + loans, 0) ?? 0,
      shared_bytes: report?.memory.shared_bytes ?? 0,
      services: report?.services ?? {},
    };
  });
  return { seconds, members, channels };
}

function print(socket: string, sample: TopSample, { json, once }: Flags): void {
  if (json === true) {
    const line = { schema: 'penstock.idc-top/1', socket, ...sample };
    process.stdout.write(`${JSON.stringify(line)}\n`);
    return;
  }
  const home = process.stdout.isTTY && once !== true ? '\x1b[H\x1b[2J' : '';
  printText(`${home}${formatSample(sample)}`);
}

export function formatSample({ members, channels }: TopSample): string {
  if (members.length === 0) return 'No other members.\n';
  const heading = ['MEMBER', 'SLOT', 'STATE', 'SENT/S', 'RECEIVED/S', 'LENT', 'HELD', 'SHARED'];
  const rows = members.map((member) => [
    member.name,
    String(member.slot),
    member.state,
    ...[member.sent_per_s, member.received_per_s, member.lent, member.held].map(String),
    formatSize(member.shared_bytes),
  ]);
  const parts = [table(heading, rows)];
  if (channels.length > 0) {
    const busiest = [...channels].sort((a, b) => b.records_per_s - a.records_per_s);
    const lines = busiest.map(({ from, to, port, records_per_s, wakes_per_s, unread }) => {
      return [from, to, port, ...[records_per_s, wakes_per_s, unread].map(String)];
    });
    parts.push(table(['FROM', 'TO', 'PORT', 'RECORDS/S', 'WAKES/S', 'UNREAD'], lines));
  }
  return parts.join('\n');
}

function parseInterval(text: string): number {
  const seconds = parseDuration(text);
  if (seconds >= INTERVAL_SECONDS_MIN && seconds <= INTERVAL_SECONDS_MAX) return seconds;
  throw new PenstockError(
    'BAD_OPTION',
    `--interval: ${text} is not between ${INTERVAL_SECONDS_MIN} s and an hour`,
    { hint: 'Give it like 500ms or 2.', exitCode: Exit.USAGE },
  );
}
