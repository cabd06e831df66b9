// `penstock idc` as users run it: a hub that is a command, members that are processes.

import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { formatMembers } from '../../lib/cli/idc-ls.js';
import { formatSample, sampleOf } from '../../lib/cli/idc-top.js';
import type { AskedMember } from '../../lib/cli/idc-members.js';
import { startMember, hubPath, type Actor } from '../idc/actors.js';
import { MAIN, command, penstock, type Ended } from './command.js';

interface Failure {
  error: { code: string; message: string; hint: string };
}

interface Listed {
  schema: string;
  members: {
    name: string;
    slot: number;
    state: string;
    answer: string;
    memory?: { shared_bytes: number; mapped_bytes: number };
    channels?: { peer: string; port: string; sent: number; received: number; unread: number }[];
    lent?: { consumer: string; loans: number; bytes: number; oldest_ms: number }[];
    held?: { owner: string; loans: number }[];
    services?: Record<string, unknown>;
  }[];
}

const hubs: ChildProcess[] = [];

afterEach(async () => {
  for (const hub of hubs.splice(0)) {
    if (hub.exitCode !== null || hub.signalCode !== null) continue;
    const gone = once(hub, 'exit');
    hub.kill('SIGKILL');
    await gone;
  }
});

/** `penstock idc hub`, once it listens. */
async function startHub(path: string, ...args: string[]): Promise<ChildProcess & { log: string }> {
  const child = spawn(process.execPath, [MAIN, 'idc', 'hub', path, ...args], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  hubs.push(child);
  const hub = Object.assign(child as ChildProcess, { log: '' });
  await new Promise<void>((resolve, reject) => {
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      hub.log += text;
      if (hub.log.includes('listens at')) resolve();
    });
    child.once('exit', () => reject(new Error(hub.log)));
  });
  return hub;
}

async function failure(args: string[]): Promise<{ code: string; exitCode: number | null }> {
  const ended = await penstock([...args, '--json']);
  const { error } = JSON.parse(ended.stdout) as Failure;
  expect(error.hint).not.toBe('');
  expect(ended.stderr).toContain(error.message);
  return { code: error.code, exitCode: ended.exitCode };
}

async function list(path: string): Promise<Listed['members']> {
  const ended = await penstock(['idc', 'ls', path, '--json']);
  expect(ended).toMatchObject({ exitCode: 0, stderr: '' });
  const { schema, members } = JSON.parse(ended.stdout) as Listed;
  expect(schema).toBe('penstock.idc-ls/1');
  // What asked before may not be forgotten yet.
  return members.filter(({ state }) => state !== 'leaving');
}

/** One end listens and keeps every second message; the other sends `count`. */
async function talk(from: Actor, to: Actor, name: string, count: number): Promise<void> {
  await to.run(({ domain, messages }) => {
    domain.listen('frames', (channel) => {
      let number = 0;
      void (async () => {
        for await (const message of channel) {
          if (number++ % 2 === 0) message.release();
          else messages.push(message);
        }
      })();
    });
  });
  await from.run(
    async ({ domain, channels }, peer, frames) => {
      const channel = await domain.connect(peer, 'frames');
      channels['frames'] = channel;
      for (let i = 0; i < frames; i++) await channel.send(domain.alloc(4096));
    },
    name,
    count,
  );
  await to.run(
    async ({ until, messages }, kept) => until('all frames', () => messages.length === kept),
    count / 2,
  );
}

describe('penstock idc hub', () => {
  it.each(['SIGINT', 'SIGTERM'] as const)(
    'ends in order on %s, and leaves nothing',
    async (sig) => {
      const path = hubPath();
      const hub = await startHub(path);
      expect(statSync(path).mode & 0o777).toBe(0o600);
      hub.kill(sig);
      expect(await once(hub, 'exit')).toEqual([0, null]);
      expect(readdirSync(dirname(path))).toEqual([]);
    },
  );

  it('logs who comes and goes, and says as JSON where it is', async () => {
    const path = hubPath();
    const hub = await startHub(path, '--mode', '0660');
    expect(statSync(path).mode & 0o777).toBe(0o660);
    const member = await startMember(path, 'somebody');
    await member.kill();
    await expect.poll(() => hub.log).toMatch(/somebody \(pid \d+, uid \d+\) has slot 1/);
    await expect.poll(() => hub.log).toMatch(/somebody \(slot 1\)/);

    const other = hubPath();
    const child = spawn(process.execPath, [MAIN, 'idc', 'hub', other, '--json'], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    hubs.push(child);
    const [text] = (await once(child.stdout.setEncoding('utf8'), 'data')) as [string];
    expect(JSON.parse(text)).toEqual({
      schema: 'penstock.idc-hub/1',
      socket: other,
      pid: child.pid,
      mode: '0600',
      allow: {},
    });
  });

  it('admits whom it is told to', async () => {
    const path = hubPath();
    const nobody = 65534;
    await startHub(path, '--allow-uid', String(nobody), '--allow-gid', String(nobody));
    await expect(startMember(path, 'a')).rejects.toMatchObject({ code: 'PERMISSION_DENIED' });
    // Who may connect may see who is there.
    expect(await list(path)).toEqual([]);
  });

  it('says what is wrong with its words, and with its path', async () => {
    const path = hubPath();
    expect(await failure(['idc', 'hub', path, '--mode', '999'])).toEqual(usage);
    expect(await failure(['idc', 'hub', path, '--allow-uid', 'root'])).toEqual(usage);
    expect(await failure(['idc', 'hub', `${dirname(path)}/none/hub`])).toEqual({
      code: 'HUB_FAILED',
      exitCode: 3,
    });
    writeFileSync(path, '');
    expect(await failure(['idc', 'hub', path])).toEqual({ code: 'NOT_A_SOCKET', exitCode: 3 });
    const other = hubPath();
    await startHub(other);
    expect(await failure(['idc', 'hub', other])).toEqual({ code: 'HUB_BUSY', exitCode: 3 });
  });
});

const usage = { code: 'BAD_OPTION', exitCode: 2 };

describe('penstock idc ls', () => {
  it('shows members, channels, and loans by owner and consumer', async () => {
    const path = hubPath();
    await startHub(path);
    expect((await penstock(['idc', 'ls', path])).stdout).toBe('No members.\n');
    const a = await startMember(path, 'a');
    const b = await startMember(path, 'b');
    await a.run(({ domain }) => void domain.reporters.set('mine', () => ({ answer: 42 })));
    await talk(a, b, 'b', 10);
    const [first, second] = await list(path);
    expect(first).toMatchObject({
      name: 'a',
      slot: 1,
      pid: a.pid,
      state: 'member',
      answer: 'answered',
      channels: [{ peer: 'b', port: 'frames', sent: 10, unread: 0 }],
      lent: [{ consumer: 'b', loans: 5, bytes: 5 * 4096 }],
      held: [],
      services: { mine: { answer: 42 } },
    });
    expect(second).toMatchObject({
      name: 'b',
      channels: [{ peer: 'a', port: 'frames', sent: 0, received: 10 }],
      lent: [],
      held: [{ owner: 'a', loans: 5 }],
    });
    expect(first?.memory?.shared_bytes).toBeGreaterThan(0);

    const people = await penstock(['idc', 'ls', path]);
    expect(people.stdout).toMatch(/^1 +a +\d+ +\d+ +member +.+ MiB +.+ MiB +1 +5 +0$/m);
    expect(people.stdout).toMatch(/^a +b +frames +1024 +10 +0 +\d+$/m);
    expect(people.stdout).toMatch(/^a +b +5 +20 KiB +\d+(\.\d)? m?s$/m);
  });

  it('asks who is stopped for a second, and those who do not share not at all', async () => {
    const path = hubPath();
    await startHub(path);
    const a = await startMember(path, 'a');
    await startMember(path, 'b');
    await startMember(path, 'closed', { share: { names: ['nobody'] } });
    a.stop();
    const answers = (await list(path)).map(({ name, answer }) => [name, answer]);
    expect(answers).toEqual([
      ['a', 'silent'],
      ['b', 'answered'],
      ['closed', 'not shared'],
    ]);
  });

  it('leaves nothing with those it asked', async () => {
    const path = hubPath();
    await startHub(path);
    const a = await startMember(path, 'a');
    for (let i = 0; i < 3; i++) await list(path);
    await a.run(async ({ domain, until }) => {
      await until('its links', () => domain.links.size === 0);
      await until('its loans', () => domain.loans().lent.length === 0);
    });
    const taken = await a.run(({ domain }) => domain.memory.taken);
    await list(path);
    await a.run(
      async ({ domain, until }, before) => until('buffers', () => domain.memory.taken === before),
      taken,
    );
  });

  it('does not keep a member alive that has nothing else to do', async () => {
    const path = hubPath();
    await startHub(path);
    const door = new URL('../../dist/lib/idc/index.js', import.meta.url).href;
    const program =
      `const { joinDomain } = await import('${door}');` +
      `await joinDomain('${path}', { name: 'brief' });` +
      `await new Promise((resolve) => setTimeout(resolve, 1500));`;
    const member = command(process.execPath, ['--input-type=module', '-e', program], {
      env: { PENSTOCK_QUIET: '1' },
    });
    const top = command(
      process.execPath,
      [MAIN, 'idc', 'top', path, '--json', '--interval=100ms'],
      {
        signals: [{ afterMs: 4000, signal: 'SIGINT' }],
      },
    );
    expect(await member).toMatchObject({ exitCode: 0, stderr: '' });
    expect(await top).toMatchObject({ exitCode: 0 });
  });

  it('fails where there is no hub, or none for this user', async () => {
    const path = hubPath();
    expect(await failure(['idc', 'ls', path])).toEqual({ code: 'NO_HUB', exitCode: 3 });
    writeFileSync(path, '');
    expect(await failure(['idc', 'ls', path])).toEqual({ code: 'NO_HUB', exitCode: 3 });
    expect((await penstock(['idc', 'ls'])).exitCode).toBe(2);
    expect((await penstock(['idc', 'lst', path])).stderr).toContain('ls');
  });

  it('says that a hub is silent', async () => {
    const path = hubPath();
    const hub = await startHub(path);
    hub.kill('SIGSTOP');
    expect(await failure(['idc', 'ls', path])).toEqual({ code: 'HUB_SILENT', exitCode: 3 });
    hub.kill('SIGCONT');
  });
});

describe('penstock idc top', () => {
  it('shows what goes over channels', async () => {
    const path = hubPath();
    await startHub(path);
    const a = await startMember(path, 'a');
    const b = await startMember(path, 'b');
    await talk(a, b, 'b', 2);
    await a.run(({ domain, channels, notes }) => {
      notes['sending'] = setInterval(() => channels['frames']?.trySend(domain.alloc(512)), 5);
    });
    const ended = await penstock(['idc', 'top', path, '--once', '--json', '--interval', '500ms']);
    expect(ended).toMatchObject({ exitCode: 0, stderr: '' });
    const top = JSON.parse(ended.stdout) as {
      schema: string;
      members: { name: string; sent_per_s: number; received_per_s: number }[];
      channels: { from: string; to: string; port: string; records_per_s: number }[];
    };
    expect(top.schema).toBe('penstock.idc-top/1');
    expect(top.members.map(({ name }) => name)).toEqual(['a', 'b']);
    expect(top.members[0]?.sent_per_s).toBeGreaterThan(0);
    expect(top.members[1]?.received_per_s).toBeGreaterThan(0);
    expect(top.channels.map(({ from, to, port }) => [from, to, port])).toEqual([
      ['a', 'b', 'frames'],
      ['b', 'a', 'frames'],
    ]);
    const people = await penstock(['idc', 'top', path, '--once', '--interval=100ms']);
    expect(people.stdout).toMatch(/^FROM +TO +PORT +RECORDS\/S +WAKES\/S +UNREAD\na +b +frames/m);
  });

  it('goes on until it is asked to end, a line per sample', async () => {
    const path = hubPath();
    await startHub(path);
    await startMember(path, 'a');
    const args = [MAIN, 'idc', 'top', path, '--json', '--interval', '100ms'];
    const ended: Ended = await command(process.execPath, args, {
      env: { PENSTOCK_QUIET: '1' },
      signals: [{ afterMs: 3000, signal: 'SIGTERM' }],
    });
    expect(ended).toMatchObject({ exitCode: 0, stderr: '' });
    const lines = ended.stdout.trimEnd().split('\n');
    expect(lines.length).toBeGreaterThan(1);
    for (const line of lines) expect(JSON.parse(line)).toHaveProperty('channels');
  });

  it('says what is wrong with its words', async () => {
    const path = hubPath();
    expect(await failure(['idc', 'top', path, '--interval', '1ms'])).toEqual(usage);
    expect(await failure(['idc', 'top', path, '--once'])).toEqual({ code: 'NO_HUB', exitCode: 3 });
    expect(existsSync(path)).toBe(false);
  });
});

describe('what is printed', () => {
  const member: AskedMember = {
    slot: 1,
    generation: 1,
    name: 'a',
    uid: 0,
    gid: 0,
    pid: 7,
    state: 'member',
    answer: 'answered',
    report: {
      version: 1,
      name: 'a',
      slot: 1,
      pid: 7,
      memory: { shared_bytes: 2 ** 21, buffers: 1, mapped_bytes: 0 },
      channels: [
        {
          id: 5,
          peer: 'b',
          slot: 2,
          port: 'p',
          size: 8,
          sent: 10,
          received: 0,
          unread: 3,
          wakes: 1,
        },
      ],
      lent: [{ consumer: 'b', slot: 2, loans: 1, bytes: 512, oldest_ms: 7_300_000 }],
      held: [],
      services: {},
    },
  };
  const channel = member.report!.channels[0]!;
  const after = (changes: object): AskedMember => ({
    ...member,
    report: { ...member.report!, channels: [{ ...channel, ...changes }] },
  });

  it('has ages that people read', () => {
    expect(formatMembers([member])).toContain('2.0 h');
    expect(formatMembers([])).toBe('No members.\n');
  });

  it('counts over the wrap of 32 bits, and begins anew with a new channel', () => {
    const before = { atMs: 0, members: [after({ sent: 2 ** 32 - 100 })] };
    const wrapped = { atMs: 1000, members: [after({ sent: 100 })] };
    expect(sampleOf(before, wrapped).channels[0]?.records_per_s).toBe(200);
    const fresh = { atMs: 1000, members: [after({ sent: 100, id: 6 })] };
    expect(sampleOf(before, fresh).channels[0]?.records_per_s).toBe(0);
    expect(formatSample(sampleOf(before, wrapped))).toMatch(/^a +b +p +200 +0 +3$/m);
  });
});
