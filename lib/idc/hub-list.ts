// The members of a hub as it knows them, for whoever may connect to it: without joining.

import { native } from '../native.js';
import { connectError, hubSilent, noHub, type MemberInfo } from './hub-session.js';
import { printable } from './report-read.js';
import { closeAll, SocketTransport } from './transport.js';

const LIST_MAX = 1024;

/** Errors: NO_HUB, HUB_SILENT, PERMISSION_DENIED. */
export async function listMembers(path: string, timeoutMs = 5000): Promise<MemberInfo[]> {
  let fd: number;
  try {
    fd = native.unixConnect(path);
  } catch (cause) {
    throw connectError(path, cause);
  }
  const listed: MemberInfo[] = [];
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      transport.close();
      reject(hubSilent(path, timeoutMs));
    }, timeoutMs);
    const transport = new SocketTransport(
      fd,
      {
        onMessage: ({ members, more }, fds) => {
          closeAll(fds);
          if (Array.isArray(members)) listed.push(...members.map(readMember));
          if (more === true && listed.length < LIST_MAX) return;
          clearTimeout(timer);
          transport.close();
          resolve(listed);
        },
        onEnd: (error) => {
          clearTimeout(timer);
          reject(error ?? noHub(path, undefined));
        },
      },
      true,
    );
    transport.send({ type: 'list' });
  });
}

function readMember(value: unknown): MemberInfo {
  const member = (typeof value === 'object' ? value : null) as Record<string, unknown> | null;
  const number = (key: string): number => Number(member?.[key]) || 0;
  const text = (key: string): string => printable(String(member?.[key] ?? ''));
  return {
    slot: number('slot'),
    generation: number('generation'),
    name: text('name'),
    uid: number('uid'),
    gid: number('gid'),
    pid: number('pid'),
    state: text('state'),
  };
}
