// Processes of a test, and what they are told to do.

import { execFileSync, fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach } from 'vitest';
import type { Ask, Stage, Told } from '../support/idc-actor.js';

const ACTOR = fileURLToPath(new URL('../../dist/test/support/idc-actor.js', import.meta.url));

/** An error in another process, with its code. */
export class ActorError extends Error {
  readonly code: string;
  readonly hint: string;

  constructor(told: NonNullable<Told['error']>) {
    super(told.message);
    this.name = told.name;
    this.code = told.code;
    this.hint = told.hint;
  }
}

export interface StartOptions {
  uid?: number;
  gid?: number;
  env?: Record<string, string>;
}

/** Functions run in another process: they see their arguments, and nothing of the test's scope. */
export class Actor {
  readonly child: ChildProcess;
  /** What it wrote to its standard error. */
  errors = '';
  private readonly asked = new Map<
    number,
    { resolve: (value: never) => void; reject: (error: Error) => void }
  >();
  private lastId = 0;

  private constructor(child: ChildProcess) {
    this.child = child;
    child.stderr?.on('data', (text: Buffer) => (this.errors += text.toString()));
    child.on('message', (told: Told) => {
      const waiting = this.asked.get(told.id);
      this.asked.delete(told.id);
      if (told.error === undefined) waiting?.resolve(told.value as never);
      else waiting?.reject(new ActorError(told.error));
    });
    child.on('exit', (code, signal) => {
      const error = new Error(`the process ended: ${signal ?? code}\n${this.errors}`);
      for (const { reject } of this.asked.values()) reject(error);
      this.asked.clear();
    });
  }

  static async start(options: StartOptions = {}): Promise<Actor> {
    const child = fork(ACTOR, {
      execArgv: ['--expose-gc'],
      env: { ...process.env, PENSTOCK_QUIET: '1', PENSTOCK_POISON: '1', ...options.env },
      stdio: ['ignore', 'inherit', 'pipe', 'ipc'],
      ...(options.uid === undefined ? {} : { uid: options.uid }),
      ...(options.gid === undefined ? {} : { gid: options.gid }),
    });
    const actor = new Actor(child);
    actors.push(actor);
    await actor.wait(0);
    return actor;
  }

  get pid(): number {
    return this.child.pid!;
  }

  run<A extends readonly unknown[], T>(
    scene: (stage: Stage, ...args: A) => T | Promise<T>,
    ...args: A
  ): Promise<T> {
    const id = ++this.lastId;
    const told = this.wait<T>(id);
    this.child.send({ id, code: scene.toString(), args } satisfies Ask);
    return told;
  }

  /** Ends it at once, or by another signal; resolves when it is gone. */
  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const gone = once(this.child, 'exit');
    this.child.kill(signal);
    await gone;
  }

  stop(): void {
    this.child.kill('SIGSTOP');
  }

  goOn(): void {
    this.child.kill('SIGCONT');
  }

  private wait<T>(id: number): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.asked.set(id, { resolve: resolve as (value: never) => void, reject });
    });
  }
}

const actors: Actor[] = [];
const folders: string[] = [];

afterEach(async () => {
  for (const actor of actors) actor.goOn();
  await Promise.all(actors.map((actor) => actor.kill()));
  actors.length = 0;
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true, force: true });
});

/** A path for a hub, in a folder that goes with the test. */
export function hubPath(): string {
  const folder = mkdtempSync(join(tmpdir(), 'penstock-idc-'));
  folders.push(folder);
  return join(folder, 'hub');
}

/** A process that is a hub. */
export async function startHub(path: string, options: object = {}): Promise<Actor> {
  const actor = await Actor.start();
  await actor.run(
    (stage, at, given) => {
      stage.notes['log'] = [];
      const log = (line: string): void => void (stage.notes['log'] as string[]).push(line);
      stage.hub = stage.idc.Hub.listen(at, { ...given, log });
    },
    path,
    options,
  );
  return actor;
}

/** A process that is a member of a hub. */
export async function startMember(
  hub: string,
  name: string,
  options: { share?: object } & StartOptions = {},
): Promise<Actor> {
  const actor = await Actor.start(options);
  await actor.run(
    async (stage, at, called, share) => {
      stage.domain = await stage.idc.joinDomain(at, { name: called, share });
    },
    hub,
    name,
    options.share ?? {},
  );
  return actor;
}

/** A hub in a process of its own, and members named by their letters. */
export async function startAll<const N extends string>(
  ...names: N[]
): Promise<{ path: string; hub: Actor } & Record<N, Actor>> {
  const path = hubPath();
  const hub = await startHub(path);
  const members: Record<string, Actor> = {};
  // In turn, so that slots are as named.
  for (const name of names) members[name] = await startMember(path, name);
  return { path, hub, ...(members as Record<N, Actor>) };
}

/** Opens files in an actor until it may open `free` more; call what is returned to close them. */
export async function takeDescriptors(actor: Actor, free: number): Promise<() => Promise<void>> {
  execFileSync('prlimit', ['--pid', `${actor.pid}`, '--nofile=256:256']);
  await actor.run((stage, left) => {
    const fds: number[] = [];
    try {
      for (;;) fds.push(stage.native.fileOpen('/dev/null', 0, 0));
    } catch {
      // There is none left.
    }
    for (const fd of fds.splice(0, left)) stage.native.fileClose(fd);
    stage.notes['fds'] = fds;
  }, free);
  return () =>
    actor.run((stage) => {
      for (const fd of stage.notes['fds'] as number[]) stage.native.fileClose(fd);
    });
}
