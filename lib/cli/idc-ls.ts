// `penstock idc ls SOCKET`: the members of a hub, their channels and loans. Loans that do not come
// home show here: by owner, by who has them, and by age.

import type { Command } from 'commander';
import { PenstockError } from '../errors.js';
import { listMembers, type DomainReport, type MemberInfo } from '../idc/index.js';
import { formatSize } from '../units.js';
import { Members, type AskedMember } from './idc-members.js';
import { Exit, printJson, printNote, printText, table } from './output.js';
import type { Finish } from './program.js';

/** Refusals that leave the hub's own list to be shown. */
const CANNOT_JOIN: readonly string[] = ['HUB_FULL', 'PERMISSION_DENIED', 'TIMED_OUT'];

export function configureLs(command: Command, finish: Finish): void {
  command
    .description('members of a hub, with their memory, channels and loans')
    .argument('<socket>', "the hub's socket")
    .action(async (socket: string, _: object, self: Command) => {
      const members = await readMembers(socket);
      const { json } = self.optsWithGlobals<{ json?: boolean }>();
      if (json === true) printJson('idc-ls', { socket, members: members.map(memberJson) });
      else printText(formatMembers(members));
      finish(Exit.OK);
    });
}

async function readMembers(socket: string): Promise<AskedMember[]> {
  const listed = await listMembers(socket);
  // Nobody to be asked: nobody is disturbed by one that joins.
  if (!listed.some(({ state }) => state === 'member')) return listed.map(notAsked);
  let members: Members;
  try {
    members = await Members.join(socket, 'ls');
  } catch (error) {
    if (!(error instanceof PenstockError) || !CANNOT_JOIN.includes(error.code)) throw error;
    printNote(`members cannot be asked: ${error.message}`);
    return listed.map(notAsked);
  }
  try {
    await members.linked(listed);
    return await members.ask(listed);
  } finally {
    members.close();
  }
}

function notAsked(member: MemberInfo): AskedMember {
  return { ...member, answer: 'not shared', report: null };
}

function memberJson({ report, answer, ...member }: AskedMember): object {
  const { memory, channels, lent, held, services } = report ?? {};
  return { ...member, answer, memory, channels, lent, held, services };
}

export function formatMembers(members: readonly AskedMember[]): string {
  if (members.length === 0) return 'No members.\n';
  const heading = ['SLOT', 'NAME', 'UID', 'PID', 'STATE', 'SHARED', 'MAPPED', 'CHANNELS', 'LENT'];
  const rows = members.map((member) => {
    const { report } = member;
    return [
      String(member.slot),
      member.name || '-',
      member.name === '' ? '-' : String(member.uid),
      member.name === '' ? '-' : String(member.pid),
      stateOf(member),
      report === null ? '-' : formatSize(report.memory.shared_bytes),
      report === null ? '-' : formatSize(report.memory.mapped_bytes),
      report === null ? '-' : String(report.channels.length),
      report === null ? '-' : lentWords(report),
      report === null ? '-' : String(report.held.reduce((sum, { loans }) => sum + loans, 0)),
    ];
  });
  const parts = [table([...heading, 'HELD'], rows)];
  const reports = members.flatMap(({ report }) => (report === null ? [] : [report]));
  const channels = reports.flatMap(channelRows);
  if (channels.length > 0) {
    parts.push(table(['FROM', 'TO', 'PORT', 'RING', 'SENT', 'UNREAD', 'WAKES'], channels));
  }
  const loans = reports.flatMap(loanRows);
  if (loans.length > 0) parts.push(table(['OWNER', 'LENT TO', 'LOANS', 'BYTES', 'OLDEST'], loans));
  return parts.join('\n');
}

function stateOf({ state, answer }: AskedMember): string {
  return state === 'member' && answer !== 'answered' ? answer : state;
}

function lentWords({ lent }: DomainReport): string {
  return String(lent.reduce((sum, { loans }) => sum + loans, 0));
}

function channelRows({ name, channels }: DomainReport): string[][] {
  return channels.map(({ peer, port, size, sent, unread, wakes }) => {
    return [name, peer, port, ...[size, sent, unread, wakes].map(String)];
  });
}

/** The oldest first. */
function loanRows({ name, lent }: DomainReport): string[][] {
  return [...lent]
    .sort((a, b) => b.oldest_ms - a.oldest_ms)
    .map(({ consumer, loans, bytes, oldest_ms }) => {
      return [name, consumer, String(loans), formatSize(bytes), age(oldest_ms)];
    });
}

function age(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 120) return `${seconds.toFixed(1)} s`;
  return seconds < 7200 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
